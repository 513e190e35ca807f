"""The step of SGD in one loop: torch's own bits, right rates, and no memory of what has changed."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.sgd import sgd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import bouton
from bouton.native import steps
from bouton.step import advance

SETTINGS = st.fixed_dictionaries(
    {
        "lr": st.sampled_from([0.0, 0.1, 3.0]),
        "momentum": st.sampled_from([0.0, 0.5, 0.99]),
        "dampening": st.sampled_from([0.0, 0.3]),
        "weight_decay": st.sampled_from([0.0, 0.01, 2.0]),
        "nesterov": st.booleans(),
        "maximize": st.booleans(),
    }
)


@pytest.fixture(autouse=True)
def _of_torch():
    if not steps.is_torchs():
        pytest.skip("torch rounds in another way on this machine")


@given(
    st.tuples(st.integers(1, 40), st.integers(1, 300)),
    SETTINGS,
    st.sampled_from([torch.float16, torch.float32]),
    st.integers(0, 99),
)
def test_a_step_is_torchs_and_scaled(shape, settings, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    before, gradient, buffer, factor = torch.randn(4, *shape, generator=generator)
    values = torch.rand(shape, generator=generator).to(dtype)
    buffers = [buffer.clone() if settings["momentum"] else None for _ in range(3)]
    plain, same, scaled = before.clone(), before.clone(), before.clone()
    sgd([plain], [gradient], [buffers[0]], **settings)
    assert steps.SgdStep()(same, gradient, buffers[1], (values, 0.0, None, 0.0, None), settings)
    assert torch.equal(same, plain)
    nodes = torch.randn(shape[0], 1, generator=generator)
    assert steps.SgdStep()(scaled, gradient, buffers[2], (values, 0.3, nodes, -0.2, factor), settings)
    rate = factor * (0.8 + 0.3 * values.float() * nodes)
    torch.testing.assert_close(scaled, before + rate * (plain - before), rtol=1e-5, atol=1e-5)
    if settings["momentum"]:
        assert torch.equal(buffers[0], buffers[1]) and torch.equal(buffers[0], buffers[2])


@pytest.mark.parametrize(
    "other",
    [
        lambda t: t.double(),
        lambda t: t[:4],
        lambda t: t.t().contiguous().t(),
    ],
)
def test_what_the_loop_cannot_read_is_left_to_torch(other):
    settings = {
        "lr": 0.1,
        "momentum": 0.9,
        "dampening": 0,
        "weight_decay": 0,
        "nesterov": False,
        "maximize": False,
    }
    weight, rates, step = torch.ones(5, 6), (torch.ones(5, 6), 0.5, None, 0.0, None), steps.SgdStep()
    for _ in range(2):
        assert not step(weight, other(weight), weight.clone(), rates, settings)
        assert not step(weight, weight.clone(), other(weight), rates, settings)
        assert not step(other(weight), weight.clone(), weight.clone(), rates, settings)
        for gradient in (None, weight.to_sparse()):
            assert not step(weight, gradient, weight.clone(), rates, settings)
    assert torch.equal(weight, torch.ones(5, 6))


def attached(mechanism, **options):
    torch.manual_seed(0)
    model = nn.Linear(30, 20, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9, **options})
    handle = bouton.attach(model, optimizer, [mechanism], seed=1, readout=())
    return model, optimizer, handle


def step(model, optimizer, number):
    model.weight.grad = torch.randn(20, 30, generator=torch.Generator().manual_seed(number)).to(
        model.weight
    )
    optimizer.step()


def swap_the_weight(model, optimizer, handle):
    model.weight.data = model.weight.data.clone() + 1.0


def swap_the_buffer(model, optimizer, handle):
    state = optimizer.state[model.weight]
    state["momentum_buffer"] = state["momentum_buffer"] * 2


def load(model, optimizer, handle):
    state = handle.state_dict()
    for claim in state["claims"].values():
        for tensors in claim["tensors"]:
            for tensor in tensors.values():
                tensor.mul_(0.5)
    handle.load_state_dict(state)


def change_settings(model, optimizer, handle):
    optimizer.param_groups[0].update(lr=0.3, momentum=0.5, weight_decay=0.1, maximize=True)


def widen(model, optimizer, handle):
    model.double()
    state = optimizer.state[model.weight]
    state["momentum_buffer"] = state["momentum_buffer"].double()


def lay_out_otherwise(model, optimizer, handle):
    model.weight.data = model.weight.data.t().contiguous().t()


@pytest.mark.parametrize(
    "change", [swap_the_weight, swap_the_buffer, load, change_settings, widen, lay_out_otherwise]
)
@pytest.mark.parametrize("mechanism", [bouton.PlasticityDiversity(nu=0.5), bouton.VolumePlasticity()])
def test_what_changes_between_steps_is_seen(torch_alone, change, mechanism):
    def trained():
        model, optimizer, handle = attached(mechanism)
        for number in range(6):
            if number == 4:
                change(model, optimizer, handle)
            step(model, optimizer, number)
        return model.weight.detach()

    found = trained()
    with torch_alone():
        expected = trained()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda all: pickle.loads(pickle.dumps(all))])
def test_copies_step_their_own_weights(copied):
    own = attached(bouton.PlasticityDiversity(nu=0.5))
    for number in range(3):
        step(*own[:2], number)
    other = copied(own)
    before = own[0].weight.detach().clone()
    step(*other[:2], 3)
    assert torch.equal(own[0].weight, before) and not torch.equal(other[0].weight, before)
    step(*own[:2], 3)
    assert torch.equal(own[0].weight, other[0].weight)


def test_where_the_loop_cannot_be_tried_it_is_tried_later(torch_alone):
    steps._is_torchs.cache_clear()
    with torch_alone():
        assert not steps.is_torchs()
    assert steps.is_torchs()


def test_where_torch_rounds_otherwise_torch_makes_the_steps(monkeypatch):
    taken = []
    for answer in (True, False):
        monkeypatch.setattr(advance, "is_torchs", lambda answer=answer: answer)
        monkeypatch.setattr(steps.SgdStep, "__call__", lambda *_, answer=answer: taken.append(answer))
        model, optimizer, _ = attached(bouton.PlasticityDiversity(nu=0.5))
        for number in range(3):
            step(model, optimizer, number)
    assert taken and all(taken)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_weight_of_another_shape_at_the_same_place_is_refused(momentum):
    model, optimizer, _ = attached(bouton.PlasticityDiversity(nu=0.5), momentum=momentum)
    for number in range(3):
        step(model, optimizer, number)
    whole, before = model.weight.data, model.weight.detach().clone()
    model.weight.grad, model.weight.data = None, whole[:4]
    model.weight.grad = torch.ones(4, 30)
    with pytest.raises(RuntimeError):
        optimizer.step()
    assert torch.equal(whole[4:], before[4:])


@pytest.mark.parametrize("of", ["weight", "buffer"])
@pytest.mark.parametrize("change", [lambda t: t.t(), lambda t: t[:1].expand(20, 20)])
def test_the_same_place_in_another_order_is_left_to_torch(of, change):
    torch.manual_seed(0)
    rates, settings = (
        (torch.rand(20, 20), 0.5, None, 0.0, None),
        attached(bouton.VolumePlasticity())[1].param_groups[0],
    )
    weight, gradient, buffer = torch.randn(3, 20, 20)
    own = steps.SgdStep()
    assert own(weight, gradient, buffer, rates, settings)
    if of == "weight":
        assert not own(change(weight), gradient, buffer, rates, settings)
    else:
        assert not own(weight, gradient, change(buffer), rates, settings)


class Witness(TorchDispatchMode):
    """Sees all operations of torch, and which memory those were given that write to some."""

    def __init__(self):
        super().__init__()
        self.places = set()

    def __torch_dispatch__(self, operation, types, arguments=(), named=None):
        given, _ = tree_flatten((arguments, named) if operation._schema.is_mutable else ())
        self.places |= {value.data_ptr() for value in given if isinstance(value, torch.Tensor)}
        return operation(*arguments, **(named or {}))


def test_what_watches_operations_of_torch_sees_the_step():
    layer = nn.Linear(5, 4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    bouton.attach(layer, optimizer, [bouton.PlasticityDiversity()], readout=())
    layer(torch.ones(2, 5)).sum().backward()
    optimizer.step()
    with Witness() as witness:
        optimizer.step()
    assert layer.weight.data_ptr() in witness.places
