"""What several rates are together, in every form in which a mechanism may give its own."""

from itertools import combinations_with_replacement

import pytest
import torch
from torch import nn

import bouton
from bouton import Deviation

SHAPE = (5, 7)


def drawn(number, *shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(number))


FORMS = {
    "rule": None,
    "rule by node": None,
    "values": Deviation(drawn(1, *SHAPE), 0.5),
    "16 bits": Deviation(drawn(2, *SHAPE).half(), 0.3),
    "by node": Deviation(drawn(3, 5, 1), 0.5),
    "values and nodes": Deviation(drawn(4, *SHAPE).half(), 0.4, drawn(5, 5, 1)),
    "shifted": Deviation(drawn(6, *SHAPE), 0.7, None, -0.6),
    "with a factor": Deviation(drawn(7, *SHAPE), 0.7, drawn(8, 5, 1), -0.6, drawn(9, *SHAPE)),
    "with a factor by node": Deviation(drawn(10, *SHAPE), 0.7, None, -1.0, drawn(11, 5, 1)),
    "none": Deviation(torch.zeros(()), 0.0),
}


class Given(bouton.Mechanism):
    site = "rate"
    blind = True

    def __init__(self, form):
        super().__init__()
        object.__setattr__(self, "form", form)

    def deviation(self, synapses):
        return FORMS[self.form]

    def rule(self, synapses):
        return drawn(12, *SHAPE) if self.form == "rule" else drawn(13, 5)


class GivenToo(Given):
    pass


def rate_of(form):
    if FORMS[form] is None:
        return drawn(12, *SHAPE).double() if form == "rule" else drawn(13, 5, 1).double()
    values, scale, nodes, shift, factor = FORMS[form]
    rate = 1 + shift + scale * values.double() * (1 if nodes is None else nodes.double())
    return rate * (1 if factor is None else factor.double())


@pytest.mark.parametrize("loops", [True, False])
@pytest.mark.parametrize("make_optimizer", [torch.optim.SGD, torch.optim.RMSprop, torch.optim.AdamW])
@pytest.mark.parametrize("forms", [*[(f,) for f in FORMS], *combinations_with_replacement(FORMS, 2)])
def test_rates_multiply_in_every_form(forms, make_optimizer, loops, monkeypatch):
    if not loops:
        monkeypatch.setattr("bouton.native.ready.library", lambda: None)
    weights = []
    for mechanisms in ([], [kind(form) for kind, form in zip((Given, GivenToo), forms, strict=False)]):
        torch.manual_seed(0)
        model = nn.Linear(7, 5, bias=False)
        optimizer = make_optimizer(model.parameters(), lr=0.1)
        if mechanisms:
            bouton.attach(model, optimizer, mechanisms, readout=())
        before = model.weight.detach().clone()
        model.weight.grad = drawn(14, *SHAPE)
        optimizer.step()
        weights.append((model.weight.detach() - before).double())
    expected = weights[0]
    for form in forms:
        expected = expected * rate_of(form)
    torch.testing.assert_close(weights[1], expected, rtol=1e-5, atol=1e-6)
