import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bouton.synapse import find_groups

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
