"""The kernels' own code, in Triton's interpreter, against slow oracles and against torch's operations."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import random_short
from seeded_oracle import Slowly

import bouton.fused
from bouton.fused import SeededRates
from bouton.tensors.draws import short_bits

WORDS = st.integers(0, 2**32 - 1)
SHAPES = st.one_of(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    # one entry, and about as many as one, two and three blocks have
    st.sampled_from([[1], [15], [16], [17], [31], [2, 16], [33], [47]]),
)
SEEDED = st.builds(
    SeededRates,
    key=st.tuples(WORDS, WORDS),
    nu=st.sampled_from([0.0, 0.16, 1.0]),
    clip=st.sampled_from([None, (0.5, 2.0), (0.9, 1.1)]),
    start=st.one_of(st.integers(0, 40), st.integers(0, 2**34)),
)
SGD = st.one_of(
    st.fixed_dictionaries({"momentum": st.just(0)}),
    st.fixed_dictionaries({"momentum": st.just(0.9), "dampening": st.sampled_from([0, 0.3])}),
    st.fixed_dictionaries({"momentum": st.just(0.9), "nesterov": st.just(True)}),
)
SETTINGS = {
    "SGD": st.builds(
        lambda of_sgd, common: {**of_sgd, **common},
        SGD,
        st.fixed_dictionaries(
            {
                "lr": st.sampled_from([0.1, 1]),
                "weight_decay": st.sampled_from([0, 0.05]),
                "maximize": st.booleans(),
            }
        ),
    ),
    "AdamW": st.fixed_dictionaries(
        {
            "lr": st.sampled_from([0.01, 0.1]),
            "betas": st.sampled_from([(0.9, 0.999), (0.0, 0.5), (0.5, 0.9)]),
            "eps": st.sampled_from([1e-8, 1e-2]),
            "weight_decay": st.sampled_from([0.0, 0.1]),
            "maximize": st.booleans(),
        }
    ),
}
# `on_cpu` is the same for all examples
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
BOTH = pytest.mark.parametrize("name", ["SGD", "AdamW"])


def made(name, weight, seeded, options):
    optimizer = getattr(bouton.fused, name)([weight], **options)
    optimizer.rates[weight] = seeded
    return optimizer


@given(seeded=SEEDED, count=st.integers(1, 60))
def test_bits_are_those_of_the_generator(interpreted, seeded, count):
    drawn = torch.empty(count, dtype=torch.int16)
    interpreted.draw(seeded, drawn)
    assert drawn.tolist() == short_bits(seeded.key, count, start=seeded.start).tolist()
    assert drawn.tolist() == [random_short(seeded.key, seeded.start + i) for i in range(count)]


@pytest.mark.parametrize("start", [0, 1, 2**32 + 1])
def test_bits_in_blocks_of_full_size(interpreted, monkeypatch, start):
    monkeypatch.setitem(interpreted._OPTIONS, "BLOCK", 1024)
    drawn = torch.empty(3000, dtype=torch.int16)
    seeded = SeededRates(key=(2**31, 2**32 - 1), nu=0.1, start=start)
    interpreted.draw(seeded, drawn)
    assert torch.equal(drawn, short_bits(seeded.key, 3000, start=start))


@BOTH
@SHARED
@given(data=st.data())
def test_twenty_steps_agree_with_torch_in_double_precision(on_cpu, name, data):
    shape, seeded, options = (data.draw(of) for of in (SHAPES, SEEDED, SETTINGS[name]))
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(shape))
    slow = Slowly(name, weight, seeded, options)
    optimizer = made(name, weight, seeded, options)
    for step in range(20):
        for group in (*optimizer.param_groups, *slow.optimizer.param_groups):
            group["lr"] = options["lr"] / (1 + step)
        gradient = torch.randn(shape)
        weight.grad = gradient.clone()
        optimizer.step()
        slow.step(gradient)
    assert optimizer.path == "Triton: 1"
    torch.testing.assert_close(weight.double(), slow.weight, rtol=1e-4, atol=1e-5)
    state = optimizer.state[weight]
    assert state.keys() == (slow.state.keys() if options.get("momentum", 1) else set())
    for key, value in state.items():
        torch.testing.assert_close(value.double(), slow.state[key].double(), rtol=1e-4, atol=1e-5)
        assert value.dtype == torch.float32 and value.shape == slow.state[key].shape


@BOTH
@SHARED
@given(data=st.data(), dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_every_step_is_right_to_the_last_place(on_cpu, name, data, dtype):
    shape, seeded, options = (data.draw(of) for of in (SHAPES, SEEDED, SETTINGS[name]))
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(shape).to(dtype))
    slow = Slowly(name, weight, seeded, options)
    optimizer = made(name, weight, seeded, options)
    # One unit in the last place, because the interpreter cuts bfloat16 off, where a GPU rounds to nearest;
    # more in float32, whose other roundings are as large.
    relative = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
    tolerance = {"rtol": relative, "atol": 1e-6}
    for _ in range(20):
        slow.take_over(weight.detach(), optimizer.state[weight])
        weight.grad = torch.randn(shape).to(dtype)
        optimizer.step()
        slow.step(weight.grad)
        torch.testing.assert_close(weight.double(), slow.weight, **tolerance)
        for key, value in optimizer.state[weight].items():
            torch.testing.assert_close(value.double(), slow.state[key].double(), **tolerance)
            assert value.dtype == (torch.float32 if key == "step" else dtype)


@BOTH
@SHARED
@given(data=st.data())
def test_kernels_and_torch_give_the_same_training(on_cpu, monkeypatch, name, data):
    shape, seeded, options = (data.draw(of) for of in (SHAPES, SEEDED, SETTINGS[name]))
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(shape))
    other = torch.nn.Parameter(weight.detach().clone())
    optimizers = [made(name, each, seeded, options) for each in (weight, other)]
    for _ in range(20):
        weight.grad = torch.randn(shape)
        other.grad = weight.grad.clone()
        optimizers[0].step()
        with monkeypatch.context() as patch:
            patch.setattr("bouton.fused.stepping._DEVICES", {"cuda"})
            optimizers[1].step()
    assert [optimizer.path[:6] for optimizer in optimizers] == ["Triton", "torch,"]
    torch.testing.assert_close(weight, other, rtol=1e-4, atol=1e-5)


@BOTH
def test_weights_with_and_without_rates_in_one_optimizer(on_cpu, name):
    scaled, plain = (torch.nn.Parameter(torch.ones(3, 5)) for _ in range(2))
    alone = torch.nn.Parameter(torch.ones(3, 5))
    optimizer = getattr(bouton.fused, name)([scaled, plain], lr=0.1)
    optimizer.rates[scaled] = SeededRates(key=(1, 2), nu=0.5)
    torchs = getattr(torch.optim, name)([alone], lr=0.1)
    for _ in range(3):
        for weight in (scaled, plain, alone):
            weight.grad = torch.full((3, 5), 0.3)
        kept = scaled.grad
        optimizer.step()
        torchs.step()
        assert scaled.grad is kept and torch.equal(kept, torch.full((3, 5), 0.3))
    assert torch.equal(plain, alone)
    assert optimizer.path == "Triton: 1" and not torch.allclose(scaled, alone)
