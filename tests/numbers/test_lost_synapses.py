"""A synapse that is infinite or not a number, or has such a gradient, is lost, and no other with it."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numbers_given import DTYPES, EXAMPLES, ON_STEPS, numbers
from torch import nn

import bouton
from bouton.mechanisms.dale_principle import nearest_signs
from bouton.mechanisms.grapes import presynaptic_responsibility, responsibility
from bouton.sites import RandomStream, Synapses

LOST = (math.nan, math.inf, -math.inf)
BY_SYNAPSE = {name: m for name, m in ON_STEPS.items() if not isinstance(m, bouton.Grapes)}


def returned(mechanism, weight, gradient, prepared):
    """What a rule returns for a weight, with the state that it prepared for another."""
    synapses = Synapses(prepared, stream=RandomStream(0, "test"))
    state = mechanism.prepare(synapses)
    given = mechanism.rule(
        dataclasses.replace(synapses, weight=weight, gradient=gradient, state=state, step=2)
    )
    if not isinstance(given, tuple):
        return (given,)
    return given.changed, torch.where(given.changed, given.values, 0)  # other values are not looked at


@pytest.mark.parametrize("mechanism", BY_SYNAPSE.values(), ids=BY_SYNAPSE)
@given(
    dtype=st.sampled_from(DTYPES),
    lost=st.lists(st.sampled_from([1.0, 1.0, *LOST]), min_size=12, max_size=12),
    seed=st.integers(0, 99),
)
def test_for_the_others_a_lost_synapse_counts_as_one_of_size_0(mechanism, dtype, lost, seed):
    generator = torch.Generator().manual_seed(seed)
    weight, gradient = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64).to(dtype)
    factor = torch.tensor(lost, dtype=dtype).view(3, 4)
    there = factor == 1
    without = torch.where(there, weight, 0)
    expected = returned(mechanism, without, gradient, weight)
    for found, one in zip(
        returned(mechanism, weight * factor, gradient * factor, weight), expected, strict=True
    ):
        assert torch.equal(found[there], one[there])
    if isinstance(mechanism, bouton.SpineRemodeling):
        changed, values = returned(mechanism, weight * factor, gradient * factor, weight)
        assert not changed[~there].any()  # and it stays as it is, for the user to see
        assert values.isfinite().all()


def factors_by_hand(sums, clip, normalize):
    known = [total for total in sums if math.isfinite(total)]
    largest = max(known, default=0)
    factors = [2 * total / largest if largest and math.isfinite(total) else 1.0 for total in sums]
    if clip is not None:
        factors = [min(max(factor, clip[0]), clip[1]) for factor in factors]
    mean = sum(factors) / len(factors)
    return [factor / mean if normalize else factor for factor in factors]


@given(
    values=st.lists(st.sampled_from([0.0, 0.5, -1.0, 2.0, 3.0, 5e-324, *LOST]), min_size=12, max_size=12),
    clip=st.sampled_from([None, (1.0, 2.0), (0.5, 1.5)]),
    normalize=st.booleans(),
)
def test_a_node_with_a_lost_synapse_has_factor_1_and_leaves_the_others_theirs(values, clip, normalize):
    weight = torch.tensor(values, dtype=torch.float64).view(4, 3)
    for found, rows in (
        (responsibility(weight, clip, normalize), weight),
        (presynaptic_responsibility(weight.T, clip, normalize), weight),
        (responsibility(weight[:, :2], clip, normalize, [weight[:, 2:]]), weight),
    ):
        expected = factors_by_hand([sum(abs(w.item()) for w in row) for row in rows], clip, normalize)
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@given(values=numbers(torch.float32, 12), clip=st.sampled_from([None, (1.0, 2.0)]), normalize=st.booleans())
def test_no_finite_weights_have_a_factor_beyond_its_bounds(values, clip, normalize):
    factor = responsibility(values.view(3, 4), clip, normalize)
    assert (factor <= (3 if normalize else 2)).all()
    assert (factor >= (0 if clip is None else 1 / 3)).all()


@pytest.mark.parametrize("excitatory", [None, 0.5])
def test_signs_are_chosen_by_the_synapses_that_are_left(excitatory):
    weight = torch.tensor(
        [[-1.0, -2.0, math.nan], [3.0, 1.0, -math.inf], [math.nan, 0.0, -3.0], [0.1, 0, 0]]
    )
    assert nearest_signs(weight, excitatory).tolist() == [-1, 1, -1, 1]


@given(scale=st.sampled_from([1e-40, 1e-30, 1e-10, 1.0, 1e10, 1e30]))
def test_signs_do_not_depend_on_the_scale(scale):
    weight = torch.tensor([[3.0, -1.0], [-2.0, 1.0], [-3.0, -3.0], [0.5, 0.5]]) * scale
    assert nearest_signs(weight).tolist() == [1, -1, -1, 1]
    assert nearest_signs(weight, 0.75).tolist() == [1, 1, -1, 1]
    assert nearest_signs(weight, 0.25).tolist() == [1, -1, -1, -1]


def trained(mechanism, optimizer, lost):
    """Three steps in which one synapse of the middle layer has a gradient ``lost``."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    model[1].weight.data[0, 0] = 0
    optimizer = optimizer(model.parameters(), lr=0.01)
    handle = bouton.attach(model, optimizer, [mechanism])
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        for weight in (layer.weight for layer in model):
            gradient = torch.randn(weight.shape, generator=generator)
            if weight is model[1].weight:
                gradient[0, 0] = lost
            weight.backward(gradient)
        optimizer.step()
    return [layer.weight.detach() for layer in model], handle.stats()


@pytest.mark.parametrize("lost", LOST)
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("mechanism", ON_STEPS.values(), ids=ON_STEPS)
def test_the_others_learn_as_if_the_lost_one_was_0(mechanism, optimizer, lost):
    (first, middle, last), stats = trained(mechanism, optimizer, lost)
    (a, b, c), _ = trained(mechanism, optimizer, 0.0)
    # its row and its column share its node, whose factor is theirs, too
    for found, expected in ((first, a), (middle[1:, 1:], b[1:, 1:]), (last, c)):
        assert torch.equal(found, expected)
    lost_ones = (~middle.isfinite()).nonzero().tolist()
    # an infinite weight of the wrong sign is set to 0, as any of the wrong sign
    assert lost_ones == [[0, 0]] or (lost_ones == [] and isinstance(mechanism, bouton.DalePrinciple))
    for numbers_of_one in stats[type(mechanism).__name__].values():
        assert all(math.isfinite(number) for number in numbers_of_one.values())


@pytest.mark.parametrize("mechanism", EXAMPLES.values(), ids=EXAMPLES)
@pytest.mark.parametrize("lost", LOST)
def test_stats_are_numbers_or_left_out(mechanism, lost):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model[2].weight.data[0, 0] = lost
    handle = bouton.attach(model, optimizer, [mechanism])
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(3, 4)).sum().backward()
        for numbers_of_one in handle.stats()[type(mechanism).__name__].values():
            assert all(math.isfinite(number) for number in numbers_of_one.values())
        optimizer.step()
    assert "2.weight" in str(handle.report())


@pytest.mark.parametrize("lost", [0.0, *LOST])
@pytest.mark.parametrize("kind", ["fa", "dfa"])
def test_the_angle_is_over_the_samples_that_have_one(kind, lost):
    def angles(lost):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
        handle = bouton.attach(model, None, [bouton.FeedbackAlignment(kind=kind)])
        output = model(torch.randn(len(lost) or 2, 4, generator=torch.Generator().manual_seed(0)))
        error = torch.ones_like(output)
        for sample, value in enumerate(lost):
            error[sample] = value
        output.backward(error)
        return [own.get("angle") for own in handle.stats()["FeedbackAlignment"].values()]

    assert angles([lost, lost]) == [None, None, None]
    beside = angles([1.0, 1.0, lost])
    assert beside == pytest.approx(angles([1.0, 1.0, 0.0]))
    assert all(0 <= angle <= 180 for angle in beside[1:])
