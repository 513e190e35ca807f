"""Each loop in C against operations of torch, and against the code that it takes the place of."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import erfc
from torch import nn

import bouton
from bouton.mechanisms import crystallization, fluctuation, rate_laws, spine_remodeling
from bouton.mechanisms.grapes import responsibility
from bouton.mechanisms.volume_plasticity import VolumePlasticity
from bouton.native import outputs, rates, ready, remodeling, rules, sizes
from bouton.passes import pooling
from bouton.sites import Deviation, RandomStream, Synapses
from bouton.step.product import blend
from bouton.tensors.bitmask import clear_where, put_where
from bouton.tensors.draws import uniform

ODD = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-40, 1e34]
# around what one thread works on alone, and what is summed in one go
SHAPES = st.one_of(
    st.tuples(st.integers(1, 9), st.integers(1, 40)),
    st.sampled_from([(1, 4097), (3, 4096), (257, 130), (40000, 1), (1, 70000), (5, 3, 3, 7)]),
)
SEEDS = st.integers(0, 99)


def numbers(shape, seed, odd=0.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(shape, generator=generator)
    strange = torch.tensor(ODD)[torch.randint(len(ODD), shape, generator=generator)]
    return torch.where(torch.rand(shape, generator=generator) < odd, strange, drawn).to(dtype)


def close(found, expected, rtol=1e-6, atol=0.0):
    torch.testing.assert_close(found.double(), expected.double(), rtol=rtol, atol=atol, equal_nan=True)


def known(size):
    return size.nan_to_num(0.0, 0.0, 0.0)


@given(SHAPES, SEEDS, st.sampled_from([0.0, 0.01]))
def test_sums_of_sizes(shape, seed, odd):
    weight = numbers(shape, seed, odd)
    size = weight.double().abs()
    sums = size.flatten(1).sum(1)
    finite = torch.where(sums > 3.4028235e38, math.nan, sums)
    shares = (2 * finite / finite.nan_to_num(0.0).amax()).nan_to_num(1.0)
    close(sizes.shares((weight,), None, False), shares, 4e-6)
    expected = known(size).mean()
    if expected < 3e38:
        close(sizes.mean_size(weight), expected, 2e-6)
    assert sizes.largest_size(weight) == known(weight.abs()).amax()


@given(
    SHAPES,
    SEEDS,
    st.sampled_from([0.0, 0.01]),
    st.sampled_from([None, (1.0, 2.0), (0.5, 0.6)]),
    st.booleans(),
)
def test_shares_are_those_of_torch(torch_alone, shape, seed, odd, clip, normalize):
    weight = numbers(shape, seed, odd)
    found = responsibility(weight, clip, normalize)
    with torch_alone():
        close(found, responsibility(weight, clip, normalize), 5e-6)


def test_shares_of_nothing_are_1():
    assert responsibility(torch.zeros(3, 4), clip=None).tolist() == [1, 1, 1]


@given(SHAPES, SEEDS, st.sampled_from([torch.float16, torch.float32]), st.sampled_from("fnr"))
def test_deviate_and_blend(shape, seed, dtype, kind):
    rows = (shape[0], *[1] * (len(shape) - 1))
    out, change = numbers(shape, seed), numbers(shape, seed + 1)
    values = numbers(shape, seed + 2, dtype=dtype)
    nodes = numbers(rows, seed + 3) if kind == "n" else None
    if kind == "r":
        values = numbers(rows, seed + 2)
    deviation = 0.25 * values.double() * (1 if nodes is None else nodes.double())
    expected = out.double() + change.double() * deviation
    before, now = out - change, out.clone()
    blended = before.double() + (now.double() - before.double()) * (1 + deviation)
    made = torch.empty_like(out)
    assert rates.deviate(made, out, change, values, 0.25, nodes)
    close(made, expected, atol=2e-6)
    assert rates.blend(now, before, values, 0.25, nodes)
    close(now, blended, atol=2e-6)
    factor, now = numbers(shape, seed + 4), out.clone()
    blended = before.double() + (now.double() - before.double()) * (0.5 + deviation) * factor.double()
    assert rates.blend(now, before, values, 0.25, nodes, -0.5, factor)
    close(now, blended, atol=2e-5)


def test_rates_from_0_to_1_keep_bits_as_lerp_does():
    before, now = numbers((5000,), 1), numbers((5000,), 2)
    for rate in (1.0, 0.0, 0.75, 0.25):
        found, weight = now.clone(), torch.full_like(now, rate)
        assert rates.blend(found, before, weight - 1, 1.0)
        assert torch.equal(found, torch.lerp(before, now, weight))  # all of them exact in float32


@given(SHAPES, SEEDS, st.sampled_from([0.0, 0.01]), st.sampled_from([0.0, 2.0, 40.0]))
def test_rates_of_volume_plasticity(torch_alone, shape, seed, odd, stability):
    weight = numbers(shape, seed, odd)
    for mechanism in (
        VolumePlasticity(stability=stability, spread=0.0),
        VolumePlasticity(stability=stability),
        VolumePlasticity(stability=stability, normalize=False),
    ):
        # a part of a weight, whose noise is that of the whole
        seen = {"weight": weight, "start": 131_000 + seed}
        for survey in (None, mechanism.survey(Synapses(**seen))):
            found = mechanism.rule(Synapses(**seen, survey=survey, stream=RandomStream(seed, "v")))
            with torch_alone():
                expected = mechanism.rule(Synapses(**seen, survey=survey, stream=RandomStream(seed, "v")))
            close(found, expected, 1e-6 * (4 + stability))


def test_noise_is_read_run_by_run():
    weight = torch.zeros(5, fluctuation.RUN // 2 + 3)
    synapses = Synapses(weight=weight, start=fluctuation.RUN - 5, stream=RandomStream(1, "n"))
    rate = VolumePlasticity(stability=0.0, spread=0.5).rule(synapses)
    expected = fluctuation.fluctuate(
        Synapses(weight=weight, start=fluctuation.RUN - 5, stream=RandomStream(1, "n")),
        torch.ones_like(weight),
        0.5,
    )
    close(rate, expected)


@given(SHAPES, SEEDS, st.sampled_from([0.0, 0.05]), st.sampled_from([1.0, crystallization.FROZEN]))
def test_crystallization(torch_alone, shape, seed, odd, scale):
    weight, gradient = numbers(shape, seed, odd), numbers(shape, seed + 1, odd) * 0.9
    mechanism = crystallization.Crystallization(threshold=0.3, factor=0.6)

    def rates():
        state = {"rate": numbers(shape, seed + 2).abs() * scale}
        most = {"most": torch.tensor(0.7)}
        return mechanism.rule(Synapses(weight=weight, gradient=gradient, state=state, step=8, survey=most))

    found = rates()
    with torch_alone():
        assert torch.equal(found, rates())
    one, other = torch.ones(2, *shape)
    assert rules.crystallize(one, weight, gradient, 0.3, None, -0.4, 0.0)
    assert rules.crystallize(other, weight, gradient, 0.3, sizes.mean_size(weight), -0.4, 0.0)
    assert torch.equal(one, other)


def test_the_limits_of_crystallization_do_not_belong_to_it():
    weight, gradient = torch.tensor([[1.0, 1.0, 1.0]]), torch.tensor([[0.5, 0.25, 0.375]])
    rates = torch.ones(1, 3)
    assert rules.crystallize(rates, weight, gradient, 0.25, torch.tensor(0.5), -0.5, 0.0)
    assert rates.tolist() == [[1, 1, 1]]


@given(
    st.lists(st.integers(1, 70), min_size=1, max_size=3).flatmap(
        lambda shape: st.tuples(st.just(shape), st.integers(-len(shape), -1))
    ),
    SEEDS,
)
def test_counts_of_active_outputs(case, seed):
    shape, axis = case
    output, counts = numbers(shape, seed, 0.1), torch.arange(shape[axis], dtype=torch.float64)
    others = [other for other in range(-len(shape), 0) if other != axis]
    active = (output.abs() > 0.5).double()
    expected = counts + (active.sum(others) if others else active)
    assert outputs.count_beyond(output, axis, 0.5, counts)
    assert torch.equal(counts, expected)


@given(st.integers(1, 300), SEEDS)
def test_factors_of_activity(torch_alone, nodes, seed):
    counts = torch.randint(0, 3 if seed else 1, (2, nodes), generator=torch.Generator().manual_seed(seed))

    def surveyed():
        state = {
            "active": counts[0].double(),
            "recent": counts[1].double(),
            "factor": torch.empty(nodes, 1),
        }
        found = rate_laws.LAWS["activity"].survey(Synapses(torch.ones(nodes, 2), state=state))
        return state["active"], state["recent"], found["factor"]

    found = surveyed()
    with torch_alone():
        expected = surveyed()
    assert torch.equal(found[0], expected[0]) and not found[1].any()
    close(found[2], expected[2])


@given(
    st.sampled_from([(4, 12), (12,), (3, 12, 5), (2, 12, 4, 4), (60, 12, 60), (6000, 12)]),
    st.sampled_from([2, 3, 4, 6, 12]),
    SEEDS,
)
def test_pooled_sums(torch_alone, shape, gamma, seed):
    output = numbers(shape, seed, 0.05)
    axis = 1 - len(shape) if len(shape) > 1 else -1
    found = pooling._pooled(output, gamma, axis)
    with torch_alone():
        expected = pooling._pooled(output, gamma, axis)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@given(SHAPES, SEEDS, st.sampled_from([0.0, 0.05]), st.sampled_from([2.0, 8.0, 1e9, math.inf]))
def test_remodeling(torch_alone, shape, seed, odd, d_re):
    weight = numbers(shape, seed, odd)
    for redraw in ("init", "published"):
        mechanism = spine_remodeling.SpineRemodeling(d_re=d_re, redraw=redraw)

        def rewired(mechanism=mechanism):
            return mechanism.rule(Synapses(weight=weight, start=seed, stream=RandomStream(seed, "r")))

        changed, values = rewired()
        with torch_alone():
            expected, new = rewired()
        # a draw that falls between two roundings of its chance may fall on either side
        assert (changed != expected).sum() <= 1
        both = changed & expected
        close(values[both], new[both], 2e-5, 2e-6)


def test_chances_of_remodeling_are_those_of_erfc():
    """Over many draws, where each weight is of one size: by the largest deviation that chance explains."""
    sizes, draws = torch.linspace(0.0, 0.5, 11), 100_000
    weight = sizes[:, None].repeat(1, draws)
    changed, _ = remodeling.remodel(weight, torch.tensor(1.0), 8 / math.sqrt(2), 1.0, 0, (5, 7))
    chance = torch.from_numpy(erfc(sizes.double().numpy() * 8 / math.sqrt(2)))
    error = (chance * (1 - chance) / draws).sqrt()
    assert ((changed.double().mean(1) - chance).abs() <= 4.5 * error + 1e-7).all()
    assert changed[0].all()
    # far out, where 8 in 10 million are replaced: as torch's operations decide
    far = torch.full((4, 2_000_000), 3.49 / 8 * math.sqrt(2))
    found, _ = remodeling.remodel(far, torch.tensor(1.0), 8 / math.sqrt(2), 1.0, 0, (5, 7))
    drawn = uniform((5, 7), far.shape, torch.float64, "cpu", 0, 2.0**-24, 1 + 2.0**-24)
    assert 0 < found.sum() == (drawn <= math.erfc(3.49)).sum()


@given(SHAPES, SEEDS)
def test_masked_writes(torch_alone, shape, seed):
    mask, values = numbers(shape, seed) > 0, numbers(shape, seed + 1, 0.2)
    written, cleared = numbers(shape, seed + 2, 0.2), numbers(shape, seed + 2, 0.2)
    expected = [torch.where(mask, values.view(torch.int32), written.view(torch.int32))]
    expected.append(cleared.view(torch.int32).masked_fill(mask, 0))
    versions = written._version, cleared._version
    put_where(mask, values, written)
    clear_where(mask, cleared)
    assert written._version > versions[0] and cleared._version > versions[1]  # as torch's own writing
    assert torch.equal(written.view(torch.int32), expected[0])
    assert torch.equal(cleared.view(torch.int32), expected[1])


def results():
    weight, other = numbers((300, 700), 1), numbers((300, 700), 2)
    made, deviated = torch.empty_like(weight), torch.empty_like(weight)
    total = torch.tensor(rules.volume_rates(weight, 2.0, None, made), dtype=torch.float64)
    rates.deviate(deviated, weight, other, other, 0.5)
    changed, values = remodeling.remodel(weight, torch.tensor(3.0), 4.0, 1.0, 0, (1, 2))
    counts = torch.zeros(300, dtype=torch.float64)
    outputs.count_beyond(weight, -2, 0.1, counts)
    shares = sizes.shares((weight, weight), None, True)
    sums = shares, sizes.mean_size(weight), sizes.largest_size(weight)
    pooled = outputs.pool(weight, 2, -1), outputs.pool(weight, 2, -2), total
    return [made, deviated, changed, values, counts, *sums, *pooled]


def test_results_do_not_depend_on_the_number_of_threads():
    alone = results()
    torch.set_num_threads(2)
    try:
        together = results()
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(one, two) for one, two in zip(alone, together, strict=True))


SQUARE = torch.ones(3, 3)


@pytest.mark.parametrize(
    "values",
    [
        *(
            torch.ones(()),
            torch.ones(3),
            torch.ones(1, 3),
            torch.ones(3, 1).half(),
            torch.ones(3, 3).double(),
        ),
        *(torch.ones(3, 3).t()[:, :2], torch.ones(3, 3, device="meta"), torch.ones(3, 6)[:, ::2]),
        torch._neg_view(torch.ones(3, 3)),
    ],
    ids=repr,
)
def test_deviations_of_other_shapes_are_left_to_torch(values):
    assert not rates.deviate(SQUARE.clone(), SQUARE, SQUARE, values, 1.0)
    assert not rates.blend(SQUARE.clone(), SQUARE, values, 1.0)


@pytest.mark.parametrize(
    "nodes", [torch.ones(3), torch.ones(1, 3), torch.ones(3, 1).double(), torch.ones(1, 1)]
)
def test_factors_of_other_shapes_are_left_to_torch(nodes):
    assert not rates.blend(SQUARE.clone(), SQUARE, SQUARE, 1.0, nodes)
    assert not rates.blend(SQUARE.clone(), SQUARE, torch.ones(3, 1), 1.0, torch.ones(3, 1))


def test_partners_of_other_shapes_are_left_to_torch():
    other, long, mask = torch.ones(3), torch.ones(4, 3), torch.ones(3, 3, dtype=torch.bool)
    assert not rates.deviate(SQUARE.clone(), SQUARE, other, SQUARE, 1.0)
    assert not rates.deviate(SQUARE.clone(), other, SQUARE, SQUARE, 1.0)
    assert not rates.blend(SQUARE.clone(), other, SQUARE, 1.0)
    for partners in ((long, SQUARE, SQUARE[0, 0]), (SQUARE, long, SQUARE[0, 0]), (SQUARE, SQUARE, other)):
        assert not rules.crystallize(SQUARE.clone(), *partners[:2], 0.1, partners[2], -0.5, 0.0)
    for counts in (
        torch.zeros(3),
        torch.zeros(2, dtype=torch.float64),
        torch.zeros(6, dtype=torch.float64)[::2],
    ):
        assert not outputs.count_beyond(SQUARE, -1, 0.5, counts)
    for kept in (mask.int(), mask[:2], mask.repeat(1, 2)[:, ::2], mask.to("meta")):
        assert not remodeling.put_where(kept, SQUARE, SQUARE.clone())
        assert not remodeling.clear_where(kept, SQUARE.clone())
    assert not remodeling.put_where(mask, other, SQUARE.clone())
    assert outputs.pool(SQUARE, 2, -1) is None  # which torch refuses by name


def test_layers_whose_outputs_are_not_their_nodes_are_refused():
    class Gated(nn.Linear):
        def forward(self, x):
            return nn.functional.glu(super().forward(x))

    for mechanism in (bouton.PlasticityDiversity(distribution="activity"), bouton.MultiSynapse()):
        model = nn.Sequential(Gated(4, 6), nn.Linear(3, 2))
        bouton.attach(model, torch.optim.SGD(model.parameters()), [mechanism])
        with pytest.raises(RuntimeError):
            model(torch.ones(5, 4))


def test_deviations_broadcast_from_the_last_axis_and_from_nothing():
    for values in (torch.tensor([0.0, 0.5, 1.0]), torch.tensor(-0.5)):
        found = torch.ones(3, 3)
        blend(torch.zeros(3, 3), found, Deviation(values))
        assert torch.equal(found, (1 + values).expand(3, 3))


@pytest.mark.parametrize(
    "other",
    [
        lambda weight: weight.double(),
        lambda weight: weight.bfloat16(),
        lambda weight: weight.t(),
        lambda weight: weight.to("meta"),
        lambda weight: weight.as_subclass(type("Other", (torch.Tensor,), {})),
        lambda weight: weight[:, ::2],
        lambda weight: torch._neg_view(weight),
        lambda weight: torch._efficientzerotensor(4, 6),
        lambda weight: torch._to_functional_tensor(weight),
        lambda weight: weight.to_sparse(),
        lambda weight: weight.to_mkldnn(),
    ],
)
def test_what_the_loops_cannot_read_is_left_to_torch(other):
    weight = other(torch.ones(4, 6))
    assert not ready.serves(weight)
    assert sizes.mean_size(weight) is None and outputs.pool(weight, 2, -1) is None
    assert not rates.deviate(weight, weight, weight, weight, 1.0)


def test_nothing_is_hidden_from_those_who_watch_operations():
    from torch._subclasses import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    weight = torch.ones(4, 6)
    assert ready.serves(weight)
    with FlopCounterMode(display=False):
        assert not ready.serves(weight)
    with FakeTensorMode():
        assert not ready.serves(weight)
    torch.func.vmap(lambda row: [row, [] if ready.serves(row) else row][0])(weight)
    seen = []
    torch.func.vmap(lambda row: (seen.append(ready.serves(row)), row)[1])(weight)
    assert seen == [False]


def test_graphs_are_made_of_operations_of_torch():
    graph = torch.compile(
        lambda weight: torch.tensor(ready.serves(weight)), backend="eager", fullgraph=True
    )
    assert not graph(torch.ones(4, 6))


def test_defaults_of_torch_do_not_matter():
    weight = numbers((30, 40), 1)

    def found():
        shares = sizes.shares((weight,), None, False)
        return [shares, sizes.mean_size(weight), sizes.largest_size(weight)]

    expected = found()
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        again = found()
        changed, _ = remodeling.remodel(weight, expected[2], 4.0, 1.0, 0, (1, 2))
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert changed.is_cpu
    assert all(torch.equal(one, two) for one, two in zip(again, expected, strict=True))
