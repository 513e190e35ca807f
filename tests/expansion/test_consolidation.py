import copy
import itertools
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

import bouton
from bouton.expansion.expanded import Expanded
from bouton.passes.layer import MARK


def mlp(*sizes, activation=nn.Tanh):
    layers = [[nn.Linear(a, b), activation()] for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*(module for pair in layers for module in pair))[:-1]


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


def consolidate(model):
    """The plain copy of a model that folds without a word."""
    with warnings.catch_warnings(action="error"):
        copied = bouton.consolidate(model)
    assert not any(MARK in module.__dict__ or module._forward_hooks for module in copied.modules())
    assert size(copied) <= size(model)
    return copied


def assert_same_outputs(model, other, x):
    model.eval(), other.eval()
    scale = max(model(x).abs().max().item(), 1)  # outputs near zero are differences of larger terms
    tolerance = 1e-12 if x.dtype == torch.float64 else 1e-6
    torch.testing.assert_close(other(x), model(x), rtol=0, atol=tolerance * scale)


def assert_same_architecture(model, other):
    assert str(model) == str(other)
    shapes = [(name, value.shape, value.dtype) for name, value in model.state_dict().items()]
    assert shapes == [(name, value.shape, value.dtype) for name, value in other.state_dict().items()]


@given(
    sizes=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    gamma=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_an_expanded_mlp_gives_back_the_plain_one(sizes, gamma, dtype):
    model = mlp(*sizes).to(dtype)
    expanded = bouton.expand(model, gamma, readout=())
    plain = consolidate(expanded)
    assert_same_architecture(model, plain)
    assert_same_outputs(expanded, plain, torch.randn(5, sizes[0], dtype=dtype))
    assert_same_outputs(model, plain, torch.randn(5, sizes[0], dtype=dtype))


@given(
    sizes=st.lists(st.integers(1, 4), min_size=3, max_size=5),
    gamma=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
def test_a_grouped_mlp_keeps_one_node_of_each_group(sizes, gamma, dtype, seed):
    torch.manual_seed(seed)
    model = mlp(sizes[0], *(gamma * hidden for hidden in sizes[1:-1]), sizes[-1]).to(dtype)
    bouton.attach(model, None, [bouton.MultiSynapse(gamma=gamma)])
    plain = consolidate(model)
    assert_same_architecture(mlp(*sizes).to(dtype), plain)
    assert_same_outputs(model, plain, torch.randn(5, sizes[0], dtype=dtype))


@st.composite
def conv_nets(draw):
    """Convolutions, each with its groups, whose channels a gamma of 2 leaves in their channel groups."""
    axes = draw(st.integers(1, 2))
    kinds = [getattr(nn, f"{kind}{axes}d") for kind in ("Conv", "ConvTranspose")]
    pool = getattr(nn, f"{draw(st.sampled_from(['Max', 'Avg']))}Pool{axes}d")
    channels, layers = 3, []
    for _ in range(draw(st.integers(1, 3))):
        groups = draw(st.sampled_from([1, 2])) if channels % 4 == 0 else 1
        nodes = 4 * draw(st.integers(1, 2))
        layer = draw(st.sampled_from(kinds))(channels, nodes, 2, groups=groups, bias=draw(st.booleans()))
        layers += [layer, nn.ReLU(inplace=True), pool(2, 1)]
        channels = nodes
    side = nn.Sequential(*layers)(torch.randn(1, 3, *[8] * axes))[0, 0].numel()
    model = nn.Sequential(*layers, nn.Dropout(), nn.Flatten(), nn.Linear(channels * side, 3))
    return model.double().eval(), torch.randn(2, 3, *[8] * axes).double()


@given(case=conv_nets())
def test_a_grouped_conv_net_keeps_one_channel_of_each_group(case):
    model, x = case
    bouton.attach(model, None, [bouton.MultiSynapse()])
    plain = consolidate(model)
    assert_same_outputs(model, plain, x)
    for layer, old in zip(plain, model, strict=True):
        if hasattr(layer, "out_channels"):
            assert 2 * layer.out_channels == old.out_channels
    assert plain[-1].in_features * 2 == model[-1].in_features


class Written(nn.Module):
    """A net whose forward pass is written by hand, in ways that nets are written."""

    def __init__(self, flatten):
        super().__init__()
        self.conv, self.up = nn.Conv2d(3, 4, 3, padding=1), nn.ConvTranspose2d(4, 8, 2, stride=2)
        self.first, self.second = nn.Linear(8 * 9, 6), nn.Linear(6, 2)
        self.flatten = flatten

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        x = self.up(x * torch.sigmoid(x))
        x = F.adaptive_avg_pool2d(F.dropout(x, training=self.training), 3)
        x = self.flatten(x).clamp(-1, 1)
        return self.second(F.gelu(self.first(x)) + 1)


@pytest.mark.parametrize(
    "flatten",
    [
        lambda x: torch.flatten(x, 1),
        lambda x: x.flatten(start_dim=1),
        lambda x: x.view(x.size(0), -1),
        lambda x: x.reshape(x.shape[0], -1),
    ],
)
def test_a_forward_pass_written_by_hand_is_followed(flatten):
    model = Written(flatten).double()
    bouton.attach(model, None, [bouton.MultiSynapse()])
    plain = consolidate(model)
    assert (plain.conv.out_channels, plain.up.in_channels, plain.up.out_channels) == (2, 2, 4)
    assert (plain.first.in_features, plain.first.out_features, plain.second.in_features) == (36, 3, 3)
    assert_same_outputs(model, plain, torch.randn(2, 3, 8, 8).double())


@pytest.mark.parametrize(
    "flatten", [lambda x: x.view(x.size(1), -1), lambda x: x.view(x.size(0), 72), lambda x: x.view(-1, 72)]
)
def test_other_reshapings_are_not_followed(flatten):
    model = Written(flatten).double()
    bouton.attach(model, None, [bouton.MultiSynapse(where="up")])
    with pytest.warns(UserWarning, match=r"folds up, but keeps all of its nodes"):
        plain = bouton.consolidate(model)
    assert_same_outputs(model, plain, torch.randn(8, 3, 8, 8).double())


def test_flattened_sequences_are_folded_along_their_features():
    model = nn.Sequential(nn.Linear(3, 4), nn.Flatten(), nn.Linear(20, 2)).double()
    bouton.attach(model, None, [bouton.MultiSynapse()])
    plain = consolidate(model)
    assert plain[2].in_features == 10
    assert_same_outputs(model, plain, torch.randn(2, 5, 3).double())


def test_several_readers_and_several_calls_are_folded():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.left, self.right = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 2)

        def forward(self, x):
            first, second = self.inner(x).relu(), self.inner(2 * x).tanh()
            return self.left(first + second) + self.right(first) * self.right(second)

    model = Net().double()
    bouton.attach(model, None, [bouton.MultiSynapse(gamma=3, where="inner")])
    plain = consolidate(model)
    assert (plain.inner.out_features, plain.left.in_features, plain.right.in_features) == (2, 2, 2)
    assert_same_outputs(model, plain, torch.randn(5, 4).double())


def test_groups_that_fit_the_channel_groups_of_a_reader_are_folded():
    model = nn.Sequential(nn.Conv1d(3, 8, 2), nn.Conv1d(8, 4, 2, groups=2), nn.Conv1d(4, 2, 1)).double()
    bouton.attach(model, None, [bouton.MultiSynapse(gamma=4, where="0"), bouton.Grapes()])
    plain = consolidate(model)
    assert (plain[0].out_channels, plain[1].in_channels) == (2, 2)
    assert_same_outputs(model, plain, torch.randn(2, 3, 6).double())


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.readout = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.readout(x + self.layer(x))


class Recurrent(Residual):
    def forward(self, x):
        return self.readout(self.layer(self.layer(x).relu()).relu())


class Twice(Residual):
    def forward(self, x):
        return self.readout(self.layer(x)) + self.layer(2 * x).sum()


class ReadsWeight(Residual):
    def forward(self, x):
        return self.readout(self.layer(x)) + self.readout.weight.sum()


class ReadsSize(Residual):
    def forward(self, x):
        return self.readout(self.layer(x)) / self.layer.out_features


class OptionalInput(Residual):
    def forward(self, x, shift=None):
        hidden = self.layer(x)
        return hidden if shift is None else self.readout(hidden)


class ManyInputs(Residual):
    def forward(self, x, a=None, b=None, c=None, d=None, e=None):
        return self.readout(self.layer(x))


class HookedPart(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Sequential(Residual().layer, nn.Linear(4, 4)), nn.Linear(4, 2))
        self[0].register_forward_hook(_watch)


class Branching(Residual):
    def forward(self, x):
        return self.readout(self.layer(x)) if x.sum() > 99 else self.readout(self.layer(x).relu())


class Permuted(Residual):
    def forward(self, x):
        return self.readout(self.layer(x).flip(-1))


class HalfFlat(Residual):
    def forward(self, x):
        return self.readout(self.layer(x) + self.layer(x).flatten(1))


class Features(Residual):
    def forward(self, x):
        hidden = self.layer(x)
        return self.readout(hidden).sum() + hidden


class AlwaysDropsOut(Residual):
    def forward(self, x):
        return self.readout(F.dropout(self.layer(x), 0.0, training=True))


def tied_reader():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[4].weight = model[2].weight
    return model


def _first(path, module):
    return path in ("0", "0.0", "layer")


def hooked(number):
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    model[number].register_forward_hook(_watch)
    return model


def _watch(module, inputs, output):
    return None


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Residual, "layer, but keeps all of its nodes: it is combined with another signal in add"),
        (Recurrent, "it goes to layer, which reads other signals as well"),
        (Twice, "it goes to sum"),
        (ReadsWeight, "reads weight of readout"),
        (ReadsSize, "reads out_features of layer"),
        (OptionalInput, "it is an output of forward"),
        (ManyInputs, "it has 5 optional inputs"),
        (HookedPart, "no call of it is seen in the traced model"),
        (Branching, "the model cannot be traced"),
        (Permuted, "it goes to flip"),
        (HalfFlat, "it goes to add"),
        (Features, "it is combined with another signal in add"),
        (AlwaysDropsOut, "it goes to dropout"),
        (tied_reader, "its weight is shared: 2.weight, 4.weight"),
        (lambda: hooked(1), r"it goes through 1 \(Tanh\), which bears a hook"),
        (lambda: hooked(2), r"it goes to 2 \(Linear\), which bears a hook"),
        (
            lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)),
            "goes to 1 .BatchNorm1d",
        ),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.PReLU(4), nn.Linear(4, 2)), "it goes to 1 .PReLU"),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.Flatten(0), nn.Linear(12, 2)), "it goes to 1 .Flatten"),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 2)), "it goes to 1 .LSTM"),
    ],
)
def test_where_one_node_cannot_stand_for_a_group_the_nodes_stay(make, reason):
    model, x = make().double().eval(), torch.randn(3, 4).double()
    bouton.attach(model, None, [bouton.MultiSynapse(where=_first)], readout=())
    with pytest.warns(UserWarning, match=reason) as caught:
        plain = bouton.consolidate(model)
    assert len(caught) == 1
    assert_same_architecture(make().double(), plain)
    assert not any(MARK in module.__dict__ for module in plain.modules())
    if not isinstance(model, nn.Sequential) or not isinstance(model[-1], nn.LSTM):
        assert_same_outputs(model, plain, x)


@pytest.mark.parametrize(
    ("reader", "reason"),
    [
        (nn.Conv1d(4, 4, 1, groups=4), "hold no whole groups"),
        (nn.Conv2d(4, 4, 1), "sums along another axis"),
        (nn.Linear(5, 2), "sums along another axis"),
        (nn.MaxPool2d(1), r"it goes to 1 \(MaxPool2d\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(5, 2)), "5 inputs are no multiple of 4 nodes"),
        (nn.Sequential(nn.Flatten(), nn.MaxPool1d(5), nn.Linear(4, 2)), "it goes to 1.1 .MaxPool1d"),
    ],
)
def test_what_reads_a_convolution_otherwise_sees_all_channels(reader, reason):
    model = nn.Sequential(nn.Conv1d(4, 4, 1), reader, nn.Identity()).double()
    x = torch.randn(2, 4, 5).double()
    x = x[0] if "no multiple" in reason else x  # without a batch axis, Flatten keeps the channels
    bouton.attach(model, None, [bouton.MultiSynapse(where="0")], readout=())
    with pytest.warns(UserWarning, match=reason):
        plain = bouton.consolidate(model)
    if not isinstance(reader, nn.Conv2d):
        assert_same_outputs(model, plain, x)


@pytest.mark.parametrize(
    ("make", "mechanism", "reason"),
    [
        (lambda: mlp(4, 4, 4), bouton.MultiSynapse(activation="tanh"), "its synaptic activation is 'tanh'"),
        (lambda: mlp(4, 4, 4), bouton.MultiSynapse(gamma=1, activation="relu"), "activation is 'relu'"),
        (lambda: hooked(0), bouton.MultiSynapse(), "it bears a hook"),
        (
            lambda: nn.Sequential(nn.Conv1d(4, 4, 1, groups=4), nn.Conv1d(4, 4, 1)),
            bouton.MultiSynapse(),
            "do not fit",
        ),
    ],
)
def test_what_cannot_be_folded_stays_as_it_is(make, mechanism, reason):
    model = make().double()
    bouton.attach(model, None, [mechanism])
    with pytest.warns(UserWarning, match=f"consolidate leaves 0 as it is: .*{reason}") as caught:
        left = bouton.consolidate(model)
    assert len(caught) == 1
    assert_same_outputs(model, left, torch.randn(4, 4).double())
    assert_same_architecture(model, left)
    with pytest.raises(ValueError, match="attached already"):
        bouton.attach(left, None, [bouton.Grapes()])
    bouton.detach(left)


class ReadsOwnWeight(Residual):
    def forward(self, x):
        return self.readout(self.layer(x)) + self.layer.weight.sum()


class ReadsOwnShape(Residual):
    def forward(self, x):
        return self.readout(self.layer(x)) * self.layer.weight.shape[0]


@pytest.mark.parametrize("make", [ReadsOwnWeight, ReadsOwnShape])
def test_a_layer_whose_weight_is_read_stays_as_it_is(make):
    model = make().double()
    bouton.attach(model, None, [bouton.MultiSynapse()])
    with pytest.warns(UserWarning, match="leaves layer as it is: .* reads the weights of layer"):
        assert_same_outputs(model, bouton.consolidate(model), torch.randn(4, 4).double())


class Remembers(Residual):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, shift=None):
        self.calls += 1
        self.hidden = self.layer(x.to(self.layer.weight.dtype)).relu()
        if shift is not None:
            self.hidden = self.hidden + 1
        return self.readout(self.hidden)


def test_tracing_leaves_no_trace_in_the_model():
    model = Remembers().double()
    bouton.attach(model, None, [bouton.MultiSynapse()])
    plain = consolidate(model)
    assert plain.layer.out_features == 2
    assert model.calls == plain.calls == 0 and "hidden" not in vars(model) | vars(plain)
    assert_same_outputs(model, plain, torch.randn(3, 4).double())
    x = torch.randn(3, 4).double()
    torch.testing.assert_close(plain(x, 1), model(x, 1), rtol=0, atol=1e-12)


def test_a_tied_layer_stays_as_it_is():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 2)).double()
    model[2].weight = model[0].weight
    bouton.attach(model, None, [bouton.MultiSynapse()])
    with pytest.warns(UserWarning, match="its weight is shared: 0.weight, 2.weight") as caught:
        left = bouton.consolidate(model)
    assert len(caught) == 2 and left[0].weight is left[2].weight
    assert_same_outputs(model, left, torch.randn(4, 4).double())


def test_feedback_alignment_leaves_outputs_as_they_are():
    model = mlp(4, 4, 4, 2).double()
    bouton.attach(model, None, [bouton.FeedbackAlignment(), bouton.MultiSynapse()])
    plain = consolidate(model)
    assert_same_architecture(mlp(4, 2, 2, 2).double(), plain)
    assert_same_outputs(model, plain, torch.randn(3, 4).double())
    assert not any(module._forward_pre_hooks for module in plain.modules())


def test_a_pruned_layer_stays_as_it_is():
    model = mlp(4, 4, 2).double()
    prune.l1_unstructured(model[0], "weight", 0.5)
    bouton.attach(model, None, [bouton.MultiSynapse()])
    with pytest.warns(UserWarning, match="leaves 0 as it is: its weight or bias is pruned"):
        assert_same_outputs(model, bouton.consolidate(model), torch.randn(3, 4).double())


def test_other_wirings_stay():
    model = mlp(4, 4, 4, 2).double()
    bouton.attach(model, None, [Doubled(where="0"), bouton.MultiSynapse(where="2"), bouton.Grapes()])
    with pytest.warns(UserWarning, match="leaves 0 as it is: Doubled transforms its output") as caught:
        left = bouton.consolidate(model)
    assert len(caught) == 1 and left[2].out_features == 2
    assert_same_outputs(model, left, torch.randn(3, 4).double())


class Doubled(bouton.Mechanism):
    site = "wiring"

    def rule(self, synapses, output):
        return 2 * output


def test_a_layer_before_one_that_is_left_keeps_its_nodes():
    model = mlp(4, 4, 4, 2).double()
    bouton.attach(model, None, [bouton.MultiSynapse(where="0")])
    bouton.attach(model[2], None, [bouton.MultiSynapse(activation="tanh")], readout=())
    with pytest.warns(UserWarning) as caught:
        left = bouton.consolidate(model)
    assert len(caught) == 2
    assert any("it goes to 2 (Linear), which bears a hook" in str(warning.message) for warning in caught)
    assert_same_outputs(model, left, torch.randn(3, 4).double())


class Own(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1


def test_a_model_with_a_layer_that_is_left_is_followed():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), Own(4, 4), nn.Linear(4, 2)).double()
    bouton.attach(model, None, [bouton.MultiSynapse(where=["0", "2"])])
    with pytest.warns(UserWarning, match="leaves 2 as it is: its type Own may do more") as caught:
        left = bouton.consolidate(model)
    assert len(caught) == 1 and left[0].out_features == 2
    assert_same_outputs(model, left, torch.randn(3, 4).double())


@pytest.mark.filterwarnings("ignore:consolidate folds:UserWarning")
def test_a_transformer_is_folded():
    def make(width=8):
        layer = nn.TransformerEncoderLayer(8, 2, width, batch_first=True)
        return nn.Sequential(nn.Linear(3, 8), nn.TransformerEncoder(layer, 2), nn.Linear(8, 3)).double()

    model, x = make(16), torch.randn(2, 5, 3).double()
    bouton.attach(model, None, [bouton.MultiSynapse(where="1.layers.*")])
    plain = bouton.consolidate(model)
    assert_same_architecture(make(), plain)
    assert_same_outputs(model, plain, x)
    with torch.no_grad():  # torch's fused path, which hooks kept away
        assert_same_outputs(model, plain, x)

    model = make()
    expanded = bouton.expand(model, 3, readout=())
    plain = consolidate(expanded)
    assert_same_architecture(model, plain)
    assert_same_outputs(expanded, plain, x)


def test_layers_at_the_end_of_a_transformers_block_are_named():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    bouton.attach(model, None, [bouton.MultiSynapse()], readout=())
    with pytest.warns(UserWarning, match="folds linear2, .* it is an output of _ff_block"):
        bouton.consolidate(model)
    model = nn.TransformerEncoder(model, 1)
    with pytest.warns(UserWarning, match="it is an output of layers.0._ff_block"):
        bouton.consolidate(model)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_a_trained_expanded_model_is_folded(optimizer):
    model = mlp(6, 8, 8, 3).double()
    expanded = bouton.expand(model, 2)
    steps = optimizer(expanded.parameters(), lr=0.01)
    mechanisms = [bouton.PlasticityDiversity(nu=0.4), bouton.SpineRemodeling(every=2), bouton.Grapes()]
    handle = bouton.attach(expanded, steps, mechanisms)
    x, y = torch.randn(30, 6).double(), torch.randint(3, (30,))
    apart = [_apart(expanded)]
    for _ in range(6):
        steps.zero_grad()
        F.cross_entropy(expanded(x), y).backward()
        steps.step()
        apart.append(_apart(expanded))
    # with a rate of its own for each synapse and their own turnover, siblings' difference moves
    assert all((a != b).any() for a, b in itertools.pairwise(apart))
    plain = consolidate(expanded)
    assert_same_architecture(model, plain)
    assert_same_outputs(expanded, plain, x)
    assert handle.stats() and isinstance(expanded[0], Expanded)  # still at work


def _apart(model):
    members = model[0].synapses.weight.detach().unflatten(0, (-1, 2))
    return (members[:, 0] - members[:, 1]).clone()


def test_expanded_convolutions_of_all_kinds_are_folded():
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, groups=2, padding=1, padding_mode="circular"),
        nn.BatchNorm2d(6),
        nn.ConvTranspose2d(6, 4, 3, bias=False),
        nn.Conv2d(4, 2, 1),
    ).double()
    expanded = bouton.expand(model, 3, readout=())
    assert all(parameter.is_contiguous() for parameter in expanded.parameters())
    plain = consolidate(expanded)
    assert_same_architecture(model, plain)
    assert_same_outputs(expanded, plain, torch.randn(2, 4, 5, 5).double())


def test_groups_of_expanded_synapses_are_folded():
    model = mlp(4, 6, 2).double()
    expanded = bouton.expand(model, 2)
    bouton.attach(expanded, None, [bouton.MultiSynapse(gamma=3)])
    plain = consolidate(expanded)
    assert_same_architecture(model, plain)
    assert_same_outputs(expanded, plain, torch.randn(3, 4).double())


def test_expanded_layers_that_cannot_be_folded_are_named():
    x = torch.randn(3, 4).double()
    expanded = bouton.expand(mlp(4, 6, 2).double(), activation="tanh")
    with pytest.warns(
        UserWarning, match="consolidate leaves 0 as it is: its synaptic activation is 'tanh'"
    ):
        left = bouton.consolidate(expanded)
    assert_same_architecture(expanded, left)
    assert_same_outputs(expanded, left, x)
    expanded = bouton.expand(mlp(4, 6, 2).double())
    expanded[0].register_forward_hook(_watch)
    with pytest.warns(UserWarning, match="leaves 0 as it is: it bears a hook"):
        assert_same_outputs(expanded, bouton.consolidate(expanded), x)
    expanded = bouton.expand(mlp(4, 6, 2).double())
    bouton.attach(expanded, None, [bouton.MultiSynapse(activation="relu")])
    with pytest.warns(
        UserWarning, match=r"leaves 0(.synapses)? as it is: its synaptic activation is 'relu'"
    ):
        assert_same_outputs(expanded, bouton.consolidate(expanded), x)


def test_shared_and_nested_expanded_layers_are_folded():
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(4, 2)).double()
    expanded = bouton.expand(bouton.expand(model), 3)
    plain = consolidate(expanded)
    assert plain[0] is plain[2]
    assert_same_architecture(model, plain)
    assert_same_outputs(expanded, plain, torch.randn(3, 4).double())


def test_a_lone_layer_is_folded():
    layer = nn.Linear(4, 2)
    plain = consolidate(bouton.expand(layer, readout=()))
    assert_same_architecture(layer, plain)
    bouton.attach(layer, None, [bouton.MultiSynapse()], readout=())
    with pytest.warns(UserWarning, match="folds the model, but keeps all of its nodes"):
        assert_same_outputs(layer, bouton.consolidate(layer), torch.randn(3, 4))


def test_other_mechanisms_are_taken_off_the_copy_alone():
    model = mlp(4, 6, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = bouton.attach(model, optimizer, [bouton.Grapes(), bouton.PlasticityDiversity()])
    state = copy.deepcopy(model.state_dict())
    plain = consolidate(model)
    assert_same_architecture(model, plain)
    assert_same_outputs(model, plain, torch.randn(3, 4))
    assert handle.stats() and MARK in model[0].__dict__
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    bouton.attach(plain, None, [bouton.Grapes()])


def test_groups_of_one_are_taken_off_in_silence():
    model = Residual()
    bouton.attach(model, None, [bouton.MultiSynapse(gamma=1)])
    assert torch.equal(consolidate(model).layer.weight, model.layer.weight)


def test_a_plain_model_is_copied():
    model = mlp(4, 6, 2)
    plain = consolidate(model)
    assert plain is not model and plain[0].weight is not model[0].weight
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"must be a torch.nn.Module"):
        bouton.consolidate(3)


def test_the_copy_can_be_pickled_saved_and_attached_again():
    model = mlp(4, 8, 8, 2)
    bouton.attach(model, None, [bouton.MultiSynapse()])
    plain, x = consolidate(model), torch.randn(3, 4)
    assert torch.equal(pickle.loads(pickle.dumps(plain))(x), plain(x))
    fresh = mlp(4, 4, 4, 2)
    fresh.load_state_dict(plain.state_dict())
    assert torch.equal(fresh(x), plain(x))
    bouton.attach(plain, None, [bouton.MultiSynapse()])
    again = consolidate(plain)
    assert again[0].out_features == 2
    assert_same_outputs(plain, again, x)


def test_settings_of_the_layers_stay():
    model = mlp(4, 8, 8, 2)
    model[0].weight.requires_grad_(False)
    handle = bouton.attach(model, None, [bouton.MultiSynapse(where="2")])
    for plain in (
        consolidate(model),
        consolidate(bouton.expand(_detached(model, handle), where=["0", "2"])),
    ):
        assert not plain[0].weight.requires_grad and plain[2].weight.requires_grad
        assert all(module.training for module in plain.modules())
        assert all(parameter.is_leaf and parameter.is_contiguous() for parameter in plain.parameters())


def _detached(model, handle):
    handle.detach()
    return model
