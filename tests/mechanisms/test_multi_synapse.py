from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bouton
from bouton.mechanisms.multi_synapse import ACTIVATIONS, pool_nodes

DATA = Path(__file__).parent.parent / "data" / "diversity.npz"


# The nets whose parameters and outputs the published code wrote down.
NETS = {
    "split": lambda: nn.Sequential(
        nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 5)
    ),
    "splitconv": lambda: nn.Sequential(
        nn.Conv2d(4, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(192, 5),
    ),
}


def published():
    cases = {}
    with np.load(DATA) as file:
        for key in file.files:
            kind, number, name = key.split("/", 2)
            if kind in NETS:
                cases.setdefault(f"{kind}/{number}", {})[name] = file[key]
    return cases


@pytest.mark.parametrize("case", published())
def test_agrees_with_the_published_code(case):
    values = {name: torch.from_numpy(v) for name, v in published()[case].items() if v.dtype.kind != "U"}
    model = NETS[case.split("/")[0]]().double()
    model.load_state_dict({name[2:]: value for name, value in values.items() if name.startswith("p/")})
    activation = published()[case]["activation"].item().lower()
    bouton.attach(model, None, [bouton.MultiSynapse(gamma=values["gamma"].item(), activation=activation)])
    torch.testing.assert_close(model(values["x"]).detach(), values["y"], rtol=0, atol=1e-12)


@given(
    gamma=st.integers(1, 3),
    groups=st.integers(1, 3),
    before=st.lists(st.integers(1, 3), max_size=2),
    behind=st.lists(st.integers(1, 3), max_size=3),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
)
def test_outputs_of_any_rank_equal_the_oracle(gamma, groups, before, behind, activation):
    output = torch.randn(*before, gamma * groups, *behind, dtype=torch.float64)
    axis = -1 - len(behind)
    phi = ACTIVATIONS[activation]
    torch.testing.assert_close(
        pool_nodes(output, gamma, phi, axis), oracles.pool_nodes(output, gamma, phi, axis)
    )


def test_gradients_are_right():
    output = torch.randn(3, 6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: pool_nodes(a, 3, torch.tanh, -2), output)


def test_in_place_activations_work_on_the_pooled_output():
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    bouton.attach(model, None, [bouton.MultiSynapse(activation=torch.sigmoid), bouton.Grapes()])
    model(torch.randn(3, 5, 6)).sum().backward()
    assert model[0].weight.grad.isfinite().all()


def test_layers_that_gamma_does_not_divide_are_named():
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 5), nn.Linear(5, 2))
    report = str(bouton.attach(model, None, [bouton.MultiSynapse(gamma=4)]).report())
    assert "gamma=4 does not divide its 5 nodes" in report
    with pytest.raises(ValueError, match="gamma=3 does not divide its 4 nodes"):
        bouton.attach(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2)), None, [bouton.MultiSynapse(gamma=3)])


@pytest.mark.parametrize("wrong", [{"gamma": 0}, {"gamma": 1.5}, {"activation": "wave"}])
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(ValueError, match=r"MultiSynapse\(" + next(iter(wrong))):
        bouton.MultiSynapse(**wrong)
