"""Rules on some nodes after another do what they do on all at once."""

import pytest
import torch
from subjects import EXAMPLES
from torch import nn

import bouton
from bouton.mechanisms import sizes
from bouton.step import product, rates
from bouton.tensors import draws, scratch

SITES = {name: example for name, example in EXAMPLES.items() if example.site in ("rate", "structure")}


class Net(nn.Module):
    """Packed weights, transposed ones, ones stored in another order, beside others, or looked up."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.grown = nn.ConvTranspose2d(6, 4, 2, groups=2)
        self.places = nn.Embedding(25, 4)
        self.attention = nn.MultiheadAttention(4, 2, bias=False, batch_first=True)
        self.lstm = nn.LSTM(4, 4, batch_first=True)
        self.up = nn.ConvTranspose2d(4, 5, 1)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        x = self.grown(torch.tanh(self.conv(x)))
        rows = x.flatten(2).transpose(1, 2)
        rows = rows + self.places(torch.arange(rows.shape[1]))
        rows = self.lstm(self.attention(rows, rows, rows)[0])[0]
        return self.head(torch.tanh(self.up(rows.transpose(1, 2).unsqueeze(-1))).mean((2, 3)))


def trained(mechanisms, optimizer, piece=None, last=False):
    with pytest.MonkeyPatch.context() as patch:
        for module in (scratch, rates, product, draws, sizes) if piece else ():
            patch.setattr(module, "PIECE", piece)
        torch.manual_seed(0)
        model = Net().double()
        if last:
            model.to(memory_format=torch.channels_last)
        stepping = optimizer(model.parameters())
        handle = bouton.attach(model, stepping, mechanisms, seed=2, readout=())
        for number in range(4):
            x = torch.randn(
                3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(number)
            )
            stepping.zero_grad()
            model(x).square().sum().backward()
            stepping.step()
    return model.state_dict(), handle.stats()


def watched(optimizer):
    """One with a hook of somebody else, which keeps weights from being stepped in parts."""
    optimizer.register_step_post_hook(lambda *_: None)
    return optimizer


OPTIMIZERS = {
    "parted": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "parted-adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "told": lambda p: watched(torch.optim.SGD(p, lr=0.05, momentum=0.9)),
    "told-adamw": lambda p: watched(torch.optim.AdamW(p, lr=0.01)),
    "copied": lambda p: torch.optim.RMSprop(p, lr=0.01),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("mechanism", SITES.values(), ids=SITES)
def test_every_mechanism(mechanism, optimizer):
    whole, before = trained([mechanism], optimizer)
    for piece in (7, 30):
        parted, after = trained([mechanism], optimizer, piece)
        torch.testing.assert_close(parted, whole, rtol=1e-9, atol=1e-12)
        for name, numbers in before[type(mechanism).__name__].items():
            assert after[type(mechanism).__name__][name] == pytest.approx(numbers, rel=1e-9)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_several_mechanisms(optimizer, last):
    together = [
        bouton.PlasticityDiversity(distribution="weight"),
        bouton.Crystallization(threshold=0.02),
        bouton.VolumePlasticity(),
        bouton.Grapes(mode="local"),
        bouton.SpineRemodeling(every=2),
        bouton.DalePrinciple(signs="incoming"),
    ]
    whole, _ = trained(together, optimizer, last=last)
    parted, _ = trained(together, optimizer, 7, last=last)
    torch.testing.assert_close(parted, whole, rtol=1e-9, atol=1e-12)
