import pytest
import torch
from torch import nn

import bouton
from bouton.step.moments import fresh_moments

EXPECTED = {
    torch.optim.SGD: ({"lr": 0.1, "momentum": 0.9}, {"momentum_buffer": 0}),
    torch.optim.Adam: ({"amsgrad": True}, {"exp_avg": 0, "exp_avg_sq": 0, "max_exp_avg_sq": 0}),
    torch.optim.AdamW: ({}, {"exp_avg": 0, "exp_avg_sq": 0}),
    torch.optim.Adagrad: ({"initial_accumulator_value": 0.25}, {"sum": 0.25}),
    torch.optim.RMSprop: ({"centered": True}, {"square_avg": 0, "grad_avg": 0}),
    torch.optim.Rprop: ({"lr": 0.5}, {"prev": 0, "step_size": 0.5}),
    torch.optim.LBFGS: ({}, {}),
    torch.optim.Adafactor: ({}, {"row_var": None, "col_var": None}),  # these belong to no entry
}


@pytest.mark.parametrize("optimizer", EXPECTED, ids=lambda kind: kind.__name__)
def test_a_fresh_weight_has_the_state_that_its_optimizer_would_give_it(optimizer):
    arguments, expected = EXPECTED[optimizer]
    layer = nn.Linear(5, 4)
    assert fresh_moments(optimizer(layer.parameters(), **arguments), layer.weight) == expected


class Handed(torch.optim.Adagrad):
    """Hands its settings on, as many subclasses do."""

    def __init__(self, params, **settings):
        super().__init__(params, **settings)


def test_settings_that_a_subclass_hands_on_are_seen():
    layer = nn.Linear(5, 4)
    optimizer = Handed(layer.parameters(), initial_accumulator_value=0.5)
    assert fresh_moments(optimizer, layer.weight) == {"sum": 0.5}


def test_momentum_that_is_turned_on_later_is_reset_too():
    layer = nn.Linear(20, 20)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    handle = bouton.attach(layer, optimizer, [bouton.SpineRemodeling()])
    optimizer.param_groups[0]["momentum"] = 0.9
    layer.weight.grad = torch.ones(20, 20)
    optimizer.step()
    before = layer.weight.detach().clone()
    handle.remodel()
    changed = layer.weight != before
    assert changed.any()
    assert torch.equal(optimizer.state[layer.weight]["momentum_buffer"] == 0, changed)


def test_factored_moments_stay_also_where_they_have_the_shape_of_the_weight():
    layer = nn.Linear(1, 30)
    optimizer = torch.optim.Adafactor(layer.parameters(), lr=0.1)
    handle = bouton.attach(layer, optimizer, [bouton.SpineRemodeling()])
    layer.weight.grad = torch.ones(30, 1)
    optimizer.step()
    means = {name: optimizer.state[layer.weight][name].clone() for name in ("row_var", "col_var")}
    handle.remodel()
    assert all(torch.equal(optimizer.state[layer.weight][name], value) for name, value in means.items())


def test_asking_leaves_the_optimizer_alone():
    layer = nn.Linear(5, 4)
    optimizer = torch.optim.Adam(layer.parameters())
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append(1))
    before = optimizer.state_dict()
    fresh_moments(optimizer, layer.weight)
    assert optimizer.state_dict() == before
    assert not optimizer.state
    assert not calls


def test_lbfgs_forgets_its_history_once_a_weight_jumped():
    layer = nn.Linear(5, 4)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=3)
    handle = bouton.attach(layer, optimizer, [bouton.SpineRemodeling()])
    x = torch.randn(8, 5)

    def closure():
        optimizer.zero_grad()
        loss = layer(x).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert optimizer.state[layer.weight]["old_dirs"]
    handle.remodel()
    assert not optimizer.state
    optimizer.step(closure)


def test_an_optimizer_that_cannot_be_asked_is_refused_and_has_a_way_out():
    class Odd(torch.optim.SGD):
        def step(self, closure):
            return super().step(closure)

    layer = nn.Linear(5, 4)
    optimizer = Odd(layer.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"state Odd gives.*reset_moments=False"):
        bouton.attach(layer, optimizer, [bouton.SpineRemodeling()])
    bouton.attach(layer, optimizer, [bouton.SpineRemodeling(reset_moments=False)])


def test_restarted_moments_of_adam_move_as_fast_as_the_docstring_says():
    layer = nn.Linear(20, 20, bias=False)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1.0)
    handle = bouton.attach(layer, optimizer, [bouton.SpineRemodeling(every=10**6)])
    layer.weight.grad = torch.ones(20, 20)
    for _ in range(3000):
        optimizer.step()
    with torch.no_grad():
        layer.weight[0, 0] = 0.0  # the one weak synapse
    handle.remodel()
    steps = []
    for _ in range(100):
        before = layer.weight[0, 0].item()
        optimizer.step()
        steps.append(abs(layer.weight[0, 0].item() - before))
    assert 3.0 < steps[0] < 3.2
    assert 6.3 < max(steps) < 6.5
