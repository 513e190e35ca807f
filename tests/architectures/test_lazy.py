"""Lazy modules: an error that says what to do before they have weights, and all as ever afterwards."""

import pytest
import torch
from torch import nn

import bouton

LAZY = {
    "Linear": (lambda: nn.LazyLinear(4), (3, 5)),
    "Conv1d": (lambda: nn.LazyConv1d(4, 2), (3, 5, 6)),
    "Conv2d": (lambda: nn.LazyConv2d(4, 2), (3, 5, 6, 6)),
    "Conv3d": (lambda: nn.LazyConv3d(4, 2), (3, 5, 4, 4, 4)),
    "ConvTranspose1d": (lambda: nn.LazyConvTranspose1d(4, 2, groups=1), (3, 6, 6)),
    "ConvTranspose2d": (lambda: nn.LazyConvTranspose2d(4, 2, groups=2), (3, 6, 4, 4)),
    "ConvTranspose3d": (lambda: nn.LazyConvTranspose3d(4, 2), (3, 6, 3, 3, 3)),
}


@pytest.mark.parametrize("name", LAZY)
@pytest.mark.parametrize("mechanism", [entry.examples[0] for entry in bouton.registry().values()], ids=repr)
def test_first_a_clear_error_then_as_ever(name, mechanism):
    make, shape = LAZY[name]
    net = nn.Sequential(nn.Sequential(make()), nn.Tanh(), nn.Flatten(), nn.LazyLinear(4), nn.Linear(4, 2))
    message = (
        r"0\.0 is a lazy module without a weight yet; run one batch through the model before bouton.attach"
    )
    with pytest.raises(ValueError, match=message):
        bouton.attach(net, None, [mechanism])
    assert all("_bouton" not in module.__dict__ and not module._forward_hooks for module in net.modules())
    net(torch.randn(shape))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    report = bouton.attach(net, optimizer, [mechanism]).report()
    rows = {row.weight: row.left_because for row in report.rows}
    assert list(rows) == ["0.0.weight", "3.weight", "4.weight"] and rows["3.weight"] is None
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(shape)).square().mean().backward()
        optimizer.step()
    assert all(parameter.isfinite().all() for parameter in net.parameters())


def test_a_lazy_module_of_another_kind_is_no_hindrance():
    net = nn.Sequential(nn.Linear(3, 4), nn.LazyBatchNorm1d(), nn.Linear(4, 2))
    report = bouton.attach(net, None, [bouton.Grapes()]).report()
    assert report.rows[0].left_because is None
    assert report.others == ("1.weight (not yet made)", "1.bias (not yet made)")
