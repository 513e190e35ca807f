import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from bouton.layer_types import Layout, layer_types, slots


@given(
    blocks=st.integers(1, 4),
    nodes=st.integers(0, 3),
    fan_in=st.lists(st.integers(1, 3), min_size=1, max_size=3),
)
def test_blocks_are_rows_in_order_and_are_joined_again(blocks, nodes, fan_in):
    layout = Layout(blocks=blocks)
    tensor = torch.arange(blocks * nodes * torch.Size(fan_in).numel()).reshape(blocks * nodes, *fan_in)
    found = layout.split(tensor)
    assert len(found) == blocks
    for block, part in enumerate(found):
        assert torch.equal(part, tensor[block * nodes : (block + 1) * nodes])
    assert torch.equal(layout.join(list(found)), tensor)
    (units,) = layout.whole(tensor)
    assert units.shape[0] == nodes
    for unit in range(nodes):
        assert units[unit].flatten().tolist() == tensor[unit::nodes].flatten().tolist()


@given(
    groups=st.integers(1, 3), inputs=st.integers(1, 3), outputs=st.integers(1, 3), kernel=st.integers(1, 2)
)
def test_transposed_weights_are_seen_node_by_node(groups, inputs, outputs, kernel):
    layout = Layout(transposed=groups)
    tensor = torch.randn(groups * inputs, outputs, kernel)
    nodes = layout.nodes(tensor)
    for group in range(groups):
        for output in range(outputs):
            expected = tensor[group * inputs : (group + 1) * inputs, output]
            assert torch.equal(nodes[group * outputs + output], expected)
    assert torch.equal(layout.nodes(nodes), tensor)
    assert torch.equal(layout.join(list(layout.split(tensor))), tensor)


def blocks(layer):
    return {slot.parameter: slot.layout.blocks for slot in slots(layer)}


def test_gates_and_packed_projections_are_blocks():
    assert blocks(nn.RNN(2, 3, num_layers=2)) == dict.fromkeys(
        ["weight_ih_l0", "weight_hh_l0", "weight_ih_l1", "weight_hh_l1"], 1
    )
    assert blocks(nn.GRU(2, 3, bidirectional=True)) == dict.fromkeys(
        ["weight_ih_l0", "weight_hh_l0", "weight_ih_l0_reverse", "weight_hh_l0_reverse"], 3
    )
    projected = {"weight_ih_l0": 4, "weight_hh_l0": 4, "weight_hr_l0": 1}
    assert blocks(nn.LSTM(2, 3, proj_size=1)) == projected
    # as many rows as hidden units, of which there is one
    assert blocks(nn.LSTMCell(2, 1)) == {"weight_ih": 4, "weight_hh": 4}
    assert blocks(nn.GRUCell(2, 3)) == {"weight_ih": 3, "weight_hh": 3}
    assert blocks(nn.RNNCell(2, 3)) == {"weight_ih": 1, "weight_hh": 1}
    assert blocks(nn.MultiheadAttention(4, 2))["in_proj_weight"] == 3


@pytest.mark.parametrize(
    "layer", [nn.LSTM(2, 3, 2, proj_size=2, bidirectional=True), nn.GRUCell(2, 3)], ids=str
)
def test_companions_are_mutual_and_lead_into_the_same_nodes(layer):
    own = {slot.parameter: slot for slot in slots(layer)}
    for name, slot in own.items():
        for other in slot.companions:
            assert own[other].companions == (name,)
            assert getattr(layer, other).shape[0] == getattr(layer, name).shape[0]
            assert own[other].layout == slot.layout
    assert [name for name, slot in own.items() if not slot.companions] == [n for n in own if "_hr_" in n]


def test_subclasses_are_what_they_derive_from():
    class Own(nn.Linear):
        pass

    assert slots(Own(2, 3)) == slots(nn.Linear(2, 3))
    hidden = slots(NonDynamicallyQuantizableLinear(2, 3))
    assert set(hidden[0].unreachable) == {"wiring", "error", "observe"}


def test_names():
    names = layer_types()
    assert "Linear" in names and "EmbeddingBag" in names
    assert "NonDynamicallyQuantizableLinear" not in names
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("layer", [nn.LayerNorm(3), nn.BatchNorm2d(3), nn.PReLU(), nn.ReLU()], ids=str)
def test_other_types_have_no_weights_for_mechanisms(layer):
    assert slots(layer) == []
