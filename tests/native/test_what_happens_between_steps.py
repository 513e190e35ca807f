"""The loops keep what they know from step to step; whatever happens in between, training stays the same."""

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bouton

MECHANISMS = {
    "static": [bouton.PlasticityDiversity()],
    "seeded": [bouton.PlasticityDiversity(stored=False)],
    "activity": [bouton.PlasticityDiversity(distribution="activity")],
    "clipped activity": [bouton.PlasticityDiversity(distribution="activity", nu=0.9, clip=(0.5, 1.2))],
    "temporal": [bouton.PlasticityDiversity(distribution="temporal", period=2, decay=0.9)],
    "local": [bouton.Grapes(mode="local")],
    "volume": [bouton.VolumePlasticity()],
    "several": [
        bouton.PlasticityDiversity(distribution="activity"),
        bouton.Crystallization(threshold=0.01),
        bouton.Grapes(mode="local"),
    ],
}


class Life:
    """A model in training, its optimizer and its handle."""

    def __init__(self, mechanisms, optimizer_kind, **options):
        torch.manual_seed(0)
        self.model = nn.Sequential(
            *(nn.Linear(12, 15), nn.Tanh(), nn.Unflatten(1, (3, 5)), nn.Conv1d(3, 6, 2), nn.Flatten()),
            nn.Linear(24, 4),
        )
        self.optimizer = optimizer_kind(self.model.parameters(), **options)
        self.handle = bouton.attach(self.model, self.optimizer, mechanisms, seed=1)

    def load_optimizer(self):
        self.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))

    def load_handle(self):
        self.handle.load_state_dict(copy.deepcopy(self.handle.state_dict()))

    def copied(self):
        self.__dict__.update(copy.deepcopy(self.__dict__))

    def saved(self):
        file = io.BytesIO()
        torch.save(self.__dict__, file)
        self.__dict__.update(torch.load(io.BytesIO(file.getvalue()), weights_only=False))

    def other_memory(self):
        for parameter in self.model.parameters():
            parameter.data = parameter.data.clone()
        for state in self.optimizer.state.values():
            for name, value in state.items():
                state[name] = value.clone() if isinstance(value, torch.Tensor) else value

    def other_rate(self):
        self.optimizer.param_groups[0]["lr"] *= 0.7

    def decay(self):
        self.optimizer.param_groups[0]["weight_decay"] = 0.1

    def other_group(self):
        self.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})

    def freeze_or_thaw(self):
        weight = self.model[0].weight
        weight.requires_grad_(not weight.requires_grad)

    def evaluate(self):
        with torch.inference_mode():
            self.model(torch.ones(2, 12))

    def paused(self):
        with self.handle.paused():
            self.step(0)

    def closed(self):
        self.optimizer.step(lambda: self.loss(1))

    def loss(self, number):
        self.optimizer.zero_grad()
        x = torch.randn(9, 12, generator=torch.Generator().manual_seed(number))
        loss = (self.model(x) - 1).square().mean()
        loss.backward()
        return loss

    def step(self, number):
        self.loss(number)
        self.optimizer.step()


EVENTS = [name for name in vars(Life) if not name.startswith("_") and name not in ("loss", "step")]
KINDS = [
    (torch.optim.SGD, {"lr": 0.2}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (torch.optim.AdamW, {"lr": 0.01}),
]


@pytest.mark.parametrize("name", MECHANISMS)
@given(events=st.lists(st.sampled_from(EVENTS), min_size=3, max_size=8), kind=st.sampled_from(KINDS))
@settings(max_examples=15)
def test_training_is_the_same_whatever_happens(torch_alone, name, events, kind):
    def lived():
        life = Life(MECHANISMS[name], kind[0], **kind[1])
        for number, event in enumerate(events):
            life.step(number)
            getattr(life, event)()
            life.step(100 + number)
        return life.model.state_dict()

    found = lived()
    with torch_alone():
        expected = lived()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
