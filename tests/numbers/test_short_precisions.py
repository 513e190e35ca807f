"""In 16 bits each rule gives what it gives in float32, to the resolution of 16 bits."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numbers_given import ON_STEPS, numbers
from torch import nn

import bouton
from bouton.mechanisms.grapes import responsibility
from bouton.mechanisms.multi_synapse import pool_nodes
from bouton.sites import RandomStream, Synapses

SHORT = (torch.float16, torch.bfloat16)
RULES = {**ON_STEPS, "Grapes-propagated": bouton.Grapes(clip=None)}


def outcome(mechanism, weight, gradient):
    """What a rule returns at its third call."""
    synapses = Synapses(weight, gradient, stream=RandomStream(0, "test"))
    synapses = dataclasses.replace(synapses, state=mechanism.prepare(synapses))
    for step in (1, 2, 3):
        returned = mechanism.rule(dataclasses.replace(synapses, step=step))
    if not isinstance(returned, tuple):
        return (returned,)
    # other values are not looked at
    return returned.changed, torch.where(returned.changed, returned.values, 0)


@pytest.mark.parametrize("mechanism", RULES.values(), ids=RULES)
@given(dtype=st.sampled_from(SHORT), data=st.data())
@settings(max_examples=30)
def test_a_rule_in_16_bits_is_the_rule_in_float32(mechanism, dtype, data):
    weight = data.draw(numbers(dtype, 12, largest=6e4)).view(3, 4)
    gradient = data.draw(numbers(dtype, 12, largest=6e4)).view(3, 4)
    found = outcome(mechanism, weight, gradient)
    expected = outcome(mechanism, weight.float(), gradient.float())
    for short, wide in zip(found, expected, strict=True):
        if wide.dtype == torch.bool:
            assert torch.equal(short, wide)
        else:
            resolution = torch.finfo(dtype).eps
            torch.testing.assert_close(short.float(), wide, rtol=resolution, atol=1e-7)


@pytest.mark.parametrize("dtype", [*SHORT, torch.float32])
@pytest.mark.parametrize("mode", ["propagated", "local"])
def test_a_row_whose_sum_is_beyond_float16(dtype, mode):
    layer = nn.Linear(70000, 3, dtype=dtype)
    layer.weight.data.copy_(torch.tensor([[1.0], [0.75], [0.5]]).expand(3, 70000))
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    bouton.attach(layer, optimizer, [bouton.Grapes(mode=mode)], readout=())
    before = layer.weight.detach().clone()
    inputs = torch.zeros(1, 70000, dtype=dtype)
    inputs[0, 0] = 0.25
    layer(inputs).sum().backward()
    optimizer.step()
    assert (before - layer.weight.detach())[:, 0].tolist() == [0.5, 0.375, 0.25]


@pytest.mark.parametrize("dtype", SHORT)
def test_sums_over_many_synapses_are_as_exact_as_in_float32(dtype):
    weight = torch.randn(4, 10**5, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[1] *= 0.75
    total = weight.double().abs().sum(1)
    expected = 2 * total / total.max()
    torch.testing.assert_close(responsibility(weight, None).double(), expected, rtol=1e-6, atol=0)
    found = bouton.VolumePlasticity(spread=0).rule(Synapses(weight))
    assert found.double().mean() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("factor", [0.6, 0.999])
def test_rates_that_fall_in_small_steps_do_fall(dtype, factor):
    weight, gradient = torch.ones(2, 3, dtype=dtype), torch.zeros(2, 3, dtype=dtype)
    mechanism = bouton.Crystallization(factor=factor)
    synapses = Synapses(weight, gradient)
    synapses = dataclasses.replace(synapses, state=mechanism.prepare(synapses))
    for _ in range(20):
        rate = mechanism.rule(synapses)
    torch.testing.assert_close(rate, torch.full((2, 3), factor**20))


@pytest.mark.parametrize("dtype", SHORT)
def test_pooled_outputs_are_summed_in_float32(dtype):
    output = torch.randn(3, 4096, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = pool_nodes(output, 2048, lambda a: a)
    expected = output.double().unflatten(1, (2, 2048)).sum(2).repeat_interleave(2048, 1)
    assert torch.equal(found, expected.float().to(dtype))
    # a sum that is beyond the range of the output's own type is infinite, as in any layer
    assert pool_nodes(torch.full((2,), 4e4).half(), 2, lambda a: a).tolist() == [torch.inf, torch.inf]
