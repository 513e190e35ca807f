import copy

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bouton
from bouton.mechanisms.dale_principle import nearest_signs
from bouton.sites import RandomStream, Synapses

SIGNS = ("outgoing", "incoming")
AXIS = {"outgoing": 1, "incoming": 0}


def attached(layer, *others, optimizer=None, seed=0, **arguments):
    optimizer = optimizer or torch.optim.SGD(layer.parameters(), lr=0.1)
    mechanisms = [bouton.DalePrinciple(**arguments), *others]
    return optimizer, bouton.attach(layer, optimizer, mechanisms, seed=seed, readout=())


def one_sided(weight, signs):
    """For each node: no two of its synapses differ in sign."""
    nodes = weight.detach().transpose(0, AXIS[signs]).flatten(1)
    return ((nodes >= 0).all(1) | (nodes <= 0).all(1)).tolist()


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 2)),
    signs=st.sampled_from(SIGNS),
    excitatory=st.sampled_from([None, 0.0, 0.3, 0.8, 1.0]),
    seed=st.integers(0, 99),
)
def test_projection_equals_the_oracle(shape, signs, excitatory, seed):
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    mechanism = bouton.DalePrinciple(signs=signs, excitatory=excitatory)
    synapses = Synapses(weight, stream=RandomStream(seed, "test"))
    synapses.state.update(mechanism.prepare(synapses))
    changed, values = mechanism.rule(synapses)
    expected = oracles.dale(weight, signs == "outgoing", excitatory)
    assert torch.equal(torch.where(changed, values, weight), expected)
    assert torch.equal(changed, expected != weight)


def test_nodes_without_a_side_of_their_own_excite():
    assert nearest_signs(torch.tensor([[1.0, -1.0], [0.0, 0.0], [1.0, -2.0]])).tolist() == [1, 1, -1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_weights_in_16_bits_keep_their_side(dtype):
    assert nearest_signs(torch.full((2, 3), -1e-4, dtype=dtype)).tolist() == [-1, -1]


@given(shape=st.tuples(st.integers(1, 3), st.integers(1, 3)), seed=st.integers(0, 99))
def test_no_other_signs_lose_less(shape, seed):
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    ours = (weight - oracles.dale(weight, outgoing=True, excitatory=None)).square().sum()
    for number in range(2 ** shape[1]):
        signs = torch.tensor([1 if number >> column & 1 else -1 for column in range(shape[1])])
        other = torch.where(weight * signs < 0, 0, weight)
        assert ours <= (weight - other).square().sum() + 1e-12


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.5, max_iter=3),
}


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 2)),
    signs=st.sampled_from(SIGNS),
    kind=st.sampled_from(sorted(OPTIMIZERS)),
    remodeled=st.booleans(),
    first=st.booleans(),
    reset=st.booleans(),
    seed=st.integers(0, 99),
)
def test_no_weight_violates_its_sign_after_a_step(shape, signs, kind, remodeled, first, reset, seed):
    torch.manual_seed(seed)
    nodes, inputs, kernel = shape
    layer = nn.Conv1d(inputs, nodes, kernel)
    optimizer = OPTIMIZERS[kind](layer.parameters())
    spines = bouton.SpineRemodeling(every=1, d_re=1.0)
    mechanisms = [bouton.DalePrinciple(signs=signs, reset_moments=reset)]
    mechanisms = ([spines, *mechanisms] if first else [*mechanisms, spines]) if remodeled else mechanisms
    before = layer.weight.detach().clone()
    bouton.attach(layer, optimizer, mechanisms, seed=seed, readout=())
    assert torch.equal(layer.weight, before)
    sign = oracles.dale(before, signs == "outgoing", None).sum(
        [axis for axis in range(3) if axis != AXIS[signs]], keepdim=True
    )

    def closure():
        optimizer.zero_grad()
        loss = layer(torch.randn(3, inputs, 4)).square().sum()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
        assert not (layer.weight * sign < 0).any()
        assert layer.weight.isfinite().all()


def test_weights_come_back_on_their_own_side_only():
    layer = nn.Linear(1, 2, bias=False)
    layer.weight.data = torch.tensor([[0.2], [0.1]])
    optimizer, handle = attached(layer)
    for gradient, expected in ((3.0, 0.0), (3.0, 0.0), (-3.0, 0.3)):
        layer.weight.grad = torch.full_like(layer.weight, gradient)
        optimizer.step()
        torch.testing.assert_close(layer.weight.detach(), torch.full((2, 1), expected), atol=1e-6, rtol=0)
    stats = handle.stats()["DalePrinciple"]["weight"]
    assert stats["events"] == 3
    assert stats["changed"] == 4
    assert stats["turnover"] == pytest.approx(4 / 3 / 2)


def test_by_hand_before_the_first_step():
    layer = nn.Linear(6, 5)
    _, handle = attached(layer)
    assert not all(one_sided(layer.weight, "outgoing"))
    handle.remodel()
    assert all(one_sided(layer.weight, "outgoing"))


def test_by_hand_after_all_others():
    layer = nn.Linear(40, 30)
    _, handle = attached(layer, bouton.SpineRemodeling(d_re=0.5))
    handle.remodel()
    assert handle.stats()["SpineRemodeling"]["weight"]["changed"] > 0
    assert all(one_sided(layer.weight, "outgoing"))


@pytest.mark.parametrize("signs", SIGNS)
def test_signs_that_are_there_already_are_found_and_nothing_is_lost(signs):
    layer = nn.Conv2d(6, 5, 3)
    chosen = torch.randn(layer.weight.shape).sum([a for a in range(4) if a != AXIS[signs]], keepdim=True)
    with torch.no_grad():
        layer.weight.copy_(layer.weight.abs() * chosen.sign())
    before = layer.weight.detach().clone()
    _, handle = attached(layer, signs=signs)
    handle.remodel()
    assert torch.equal(layer.weight, before)
    assert handle.stats()["DalePrinciple"]["weight"]["changed"] == 0


def test_who_obeys_is_drawn_by_the_seed():
    layer = nn.Linear(40, 30)

    def obeying(seed):
        own = copy.deepcopy(layer)
        attached(own, share=0.5, seed=seed)[1].remodel()
        return one_sided(own.weight, "outgoing")

    assert obeying(0) == obeying(0)
    assert obeying(0) != obeying(1)


@pytest.mark.parametrize("share", [0.0, 0.29, 0.3, 1.0])
def test_as_many_nodes_obey_as_were_asked_to(share):
    layer = nn.Linear(40, 30)
    _, handle = attached(layer, share=share)
    handle.remodel()
    assert sum(one_sided(layer.weight, "outgoing")) == round(40 * share)


@pytest.mark.parametrize("excitatory", [0.0, 0.8, 1.0])
def test_as_many_nodes_excite_as_were_asked_to(excitatory):
    layer = nn.Linear(40, 30)
    _, handle = attached(layer, excitatory=excitatory)
    handle.remodel()
    assert (layer.weight >= 0).all(0).sum() == round(40 * excitatory)


def test_signs_are_kept_when_a_run_goes_on():
    layer = nn.Linear(6, 5)
    _, handle = attached(layer)
    handle.remodel()
    other = nn.Linear(6, 5)  # its own weights would choose other signs
    _, other_handle = attached(other)
    other.load_state_dict(layer.state_dict())
    other_handle.load_state_dict(copy.deepcopy(handle.state_dict()))
    other.weight.data = torch.randn(5, 6)
    other_handle.remodel()
    assert not (other.weight * layer.weight.sum(0).sign() < 0).any()


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv1d(4, 4, 1, groups=2), "another presynaptic node in the same place of each group"),
        (nn.ConvTranspose1d(4, 4, 1, groups=2), "another presynaptic node in the same place"),
        (nn.Bilinear(3, 4, 5), "two presynaptic nodes at each synapse"),
        (nn.LSTMCell(3, 4), "packs 4 blocks"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_where_one_presynaptic_node_is_no_column_incoming_signs_are_offered(layer, reason):
    with pytest.raises(ValueError, match=reason + r".*use signs='incoming'"):
        attached(layer)
    _, handle = attached(layer, signs="incoming")
    handle.remodel()
    for group in bouton.find_groups(layer):
        assert all(one_sided(group.layout.nodes(group.weight), "incoming"))


def test_read_outs_and_tables_are_left():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    report = bouton.attach(model, optimizer, [bouton.DalePrinciple(where="*")]).report()
    reasons = {row.weight: row.left_because for row in report.rows}
    assert "looked up" in reasons["0.weight"]
    assert reasons["1.weight"] is None
    assert "read-out" in reasons["2.weight"]


@pytest.mark.parametrize(
    "wrong", [{"signs": "both"}, {"excitatory": 1.5}, {"excitatory": "x"}, {"share": -0.1}, {"share": None}]
)
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(ValueError, match=r"DalePrinciple\(" + next(iter(wrong))):
        bouton.DalePrinciple(**wrong)
