import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune

from bouton.synapse import find_groups, find_others

CONVOLUTIONS = [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]


@given(
    kind=st.sampled_from(CONVOLUTIONS),
    groups=st.integers(1, 3),
    inputs=st.integers(1, 2),
    outputs=st.integers(1, 3),
    kernel=st.integers(1, 2),
    bias=st.booleans(),
)
def test_every_row_holds_the_synapses_of_one_output_channel(kind, groups, inputs, outputs, kernel, bias):
    layer = kind(groups * inputs, groups * outputs, kernel, groups=groups, bias=bias)
    (group,) = find_groups(layer)
    nodes = group.layout.nodes(layer.weight.detach())
    assert nodes.shape[:2] == (groups * outputs, inputs)
    assert torch.equal(group.layout.nodes(nodes), layer.weight)
    output = layer(torch.ones(2, groups * inputs, *[2] * len(layer.kernel_size)))
    assert output.shape[group.layout.output_axis] == group.node_count
    for node in range(group.node_count):
        reached = torch.autograd.grad(
            output.select(group.layout.output_axis, node).sum(), layer.weight, retain_graph=True
        )
        mask = group.layout.nodes(reached[0]) != 0
        assert mask[node].all()
        assert mask.sum() == mask[node].sum()


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        shared = nn.Linear(4, 4)
        self.encoder = nn.ModuleDict({"a": shared, "b": nn.ModuleList([nn.Conv1d(4, 4, 1), shared])})
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.encoder["b"][0].weight = nn.Parameter(torch.randn(4, 4))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.embedding = nn.Embedding(3, 4)
        self.head = nn.Linear(4, 2)
        self.norm = nn.LayerNorm(2)


def test_nested_shared_tied_and_frozen():
    groups = {group.name: group for group in find_groups(Nested())}
    names = ["encoder.a.weight", "encoder.b.0.weight", "frozen.weight", "embedding.weight", "head.weight"]
    assert list(groups) == names
    assert groups["encoder.a.weight"].aliases == ("encoder.b.1",)
    assert groups["encoder.b.0.weight"].aliases == ("tied",)
    assert [group.frozen for group in groups.values()] == [False, False, True, False, False]
    assert [group.readout for group in groups.values()] == [False, False, False, False, True]
    assert [group.depth for group in groups.values()] == [0, 0.25, 0.75, 0, 1]
    assert [group.lookup for group in groups.values()] == [False, False, False, True, False]


def test_the_read_out_can_be_chosen():
    def chosen(readout):
        return [g.path for g in find_groups(Nested(), readout) if g.readout]

    assert chosen("frozen") == ["frozen"]
    assert chosen(["tied", "head"]) == ["encoder.b.0", "head"]
    assert chosen(()) == []
    with pytest.raises(
        ValueError, match=r"readout=\['heads'\] is no synapse group; the model has: encoder.a"
    ):
        chosen("heads")


def test_a_read_out_tied_to_the_first_layer_is_still_the_read_out():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    assert [g.readout for g in find_groups(model)] == [True, False]


def test_lazy_layers_ask_for_one_batch():
    with pytest.raises(ValueError, match="lazy module without a weight yet; run one batch"):
        find_groups(nn.Sequential(nn.LazyLinear(3)))


def test_every_weight_of_a_layer_with_several():
    model = nn.ModuleDict({"lstm": nn.LSTM(3, 4, proj_size=2), "attend": nn.MultiheadAttention(4, 2)})
    groups = {group.name: group for group in find_groups(model, readout=())}
    assert list(groups) == [
        *("lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.weight_hr_l0"),
        *("attend.in_proj_weight", "attend.out_proj.weight"),
    ]
    assert [group.path for group in groups.values()] == [*["lstm"] * 3, "attend", "attend.out_proj"]
    assert [group.node_count for group in groups.values()] == [16, 16, 2, 12, 4]
    beside = groups["lstm.weight_ih_l0"].beside()
    assert [tensor.data_ptr() for tensor in beside] == [model["lstm"].weight_hh_l0.data_ptr()]
    assert not beside[0].requires_grad
    assert [group.depth for group in groups.values()] == [0, 0, 0, 0.5, 1]


def test_a_layer_with_several_weights_is_the_read_out_with_all_of_them():
    model = nn.Sequential(nn.Linear(3, 3), nn.GRUCell(3, 2))
    assert [group.readout for group in find_groups(model)] == [False, True, True]
    assert [group.readout for group in find_groups(model, "0")] == [True, False, False]


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
@given(tokens=st.integers(1, 4), width=st.integers(1, 3), padding=st.integers(-1, 3))
def test_the_row_for_padding_is_spared(kind, tokens, width, padding):
    padding = min(padding, tokens - 1)
    (group,) = find_groups(kind(tokens, width, padding_idx=padding), readout=())
    spared = group.spared()
    assert spared[padding].all() and spared.sum() == width
    (group,) = find_groups(kind(tokens, width), readout=())
    assert group.spared() is None and group.lookup


def test_pruned_synapses_are_spared():
    model = nn.Linear(4, 3)
    assert find_groups(model)[0].spared() is None
    prune.l1_unstructured(model, "weight", 0.5)
    (group,) = find_groups(model)
    assert group.weight is model.weight_orig and group.name == "weight_orig"
    assert torch.equal(group.spared(), model.weight == 0)
    assert torch.equal(group.effective(), model.weight)
    assert group.in_place
    prune.remove(model, "weight")
    assert not group.in_place


def test_what_is_no_synapse_group_is_named():
    model = nn.Sequential(
        nn.Linear(3, 4), parametrizations.weight_norm(nn.Linear(4, 2)), nn.LazyBatchNorm1d()
    )
    model.table = nn.Parameter(torch.ones(2, 3))
    assert find_others(model, find_groups(model)) == (
        "table (2, 3)",
        "1.parametrizations.weight.original0 (2, 1)",
        "2.weight (not yet made)",
        "2.bias (not yet made)",
    )
