import copy
import pickle

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

import bouton
from bouton.expansion.expanded import Expanded
from bouton.mechanisms.multi_synapse import ACTIVATIONS

CONVOLUTIONS = [nn.Conv1d, nn.Conv2d, nn.Conv3d]
TRANSPOSED = [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]


@st.composite
def layers(draw):
    """A layer of any known type in double precision, and inputs for it."""
    kind = draw(st.sampled_from([nn.Linear, *CONVOLUTIONS, *TRANSPOSED]))
    fan, nodes, bias = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.booleans())
    torch.manual_seed(draw(st.integers(0, 99)))
    if kind is nn.Linear:
        sizes = draw(st.lists(st.integers(1, 3), max_size=2))
        return nn.Linear(fan, nodes, bias).double(), torch.randn(*sizes, fan).double()
    axes, groups = int(kind.__name__[-2]), draw(st.integers(1, 2))
    options = {"groups": groups, "stride": draw(st.integers(1, 2)), "padding": draw(st.integers(0, 1))}
    if kind in CONVOLUTIONS:
        options["padding_mode"] = draw(st.sampled_from(["zeros", "reflect", "circular"]))
    layer = kind(groups * fan, groups * nodes, 2, bias=bias, **options).double()
    return layer, torch.randn(2, groups * fan, *[3] * axes).double()


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def synapses(model):
    return [module.synapses for module in model.modules() if isinstance(module, Expanded)]


@given(case=layers(), gamma=st.integers(1, 3), activation=st.sampled_from(sorted(ACTIVATIONS)))
def test_forward_equals_the_oracle(case, gamma, activation):
    layer, x = case
    expanded = bouton.expand(layer, gamma, activation=activation, readout=())
    expected = oracles.expanded(expanded.synapses, gamma, ACTIVATIONS[activation], x)
    torch.testing.assert_close(expanded(x), expected, rtol=0, atol=1e-12)
    assert expanded(x).shape == layer(x).shape


@given(case=layers(), gamma=st.integers(1, 4), seed=st.integers(0, 3))
def test_the_identity_keeps_the_function(case, gamma, seed):
    layer, x = case
    expanded = bouton.expand(layer, gamma, readout=(), seed=seed)
    torch.testing.assert_close(expanded(x), layer(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(expanded.weight, layer.weight, rtol=0, atol=1e-12)
    if layer.bias is not None:
        torch.testing.assert_close(expanded.bias, layer.bias, rtol=0, atol=1e-12)


@given(case=layers())
def test_a_single_synapse_changes_no_bit(case):
    layer, x = case
    assert torch.equal(bouton.expand(layer, 1, readout=())(x), layer(x))


def test_siblings_are_as_far_apart_as_independent_draws():
    layer = nn.Linear(300, 200).double()
    expanded = bouton.expand(layer, 4, readout=())
    members = expanded.synapses.weight.detach().unflatten(0, (-1, 4))
    spread = layer.weight.detach().square().mean().sqrt() / 2  # sigma / sqrt(gamma)
    torch.testing.assert_close(members.std(), spread, rtol=0.01, atol=0)
    across = torch.corrcoef(members.transpose(0, 1).flatten(1))
    assert (across - torch.eye(4)).abs().max() < 0.02


def test_draws_depend_on_the_seed_and_on_nothing_else():
    model, state = mlp(), torch.get_rng_state()
    first, same, other = (bouton.expand(model, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first[0].synapses.weight, same[0].synapses.weight)
    assert not torch.equal(first[0].synapses.weight, other[0].synapses.weight)
    assert torch.equal(torch.get_rng_state(), state)
    alike = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    alike[1].load_state_dict(alike[0].state_dict())
    expanded = bouton.expand(alike)
    assert not torch.equal(expanded[0].synapses.weight, expanded[1].synapses.weight)
    # a layer's draws do not depend on which others are expanded
    assert torch.equal(bouton.expand(model, where="2")[2].synapses.weight, first[2].synapses.weight)


def test_the_model_and_the_settings_of_its_layers_stay():
    model = mlp().to(torch.bfloat16)
    model[2].weight.requires_grad_(False)
    model[2].eval()
    before, modules = copy.deepcopy(model.state_dict()), [*model.modules()]
    expanded = bouton.expand(model, 3)
    assert all(a is b for a, b in zip(modules, model.modules(), strict=True))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [*expanded.state_dict()] == [
        *("0.synapses.weight", "0.synapses.bias", "2.synapses.weight", "2.synapses.bias"),
        *("4.weight", "4.bias"),
    ]
    layer = expanded[2].synapses
    assert (layer.out_features, layer.weight.dtype) == (24, torch.bfloat16)
    assert not layer.weight.requires_grad and layer.bias.requires_grad
    assert not expanded[2].training and not layer.training and expanded[0].training


def test_shared_modules_stay_shared():
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(4, 2))
    expanded, x = bouton.expand(model), torch.randn(3, 4)
    assert expanded[0] is expanded[2] and isinstance(expanded[0], Expanded)
    torch.testing.assert_close(expanded(x), model(x))


def test_where_chooses_layers():
    model = mlp()
    assert [type(m) is Expanded for m in bouton.expand(model, where="2")] == [0, 0, 1, 0, 0]
    assert [type(m) is Expanded for m in bouton.expand(model, where=["0", "2"])] == [1, 0, 1, 0, 0]
    chosen = bouton.expand(model, where=lambda path, module: module.in_features == 6)
    assert [type(m) is Expanded for m in chosen] == [1, 0, 0, 0, 0]
    assert len(synapses(bouton.expand(model, readout=()))) == 3
    assert len(synapses(bouton.expand(model, readout="0"))) == 2


def tied():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5), nn.Linear(5, 2))
    model[2].weight = model[0].weight
    return model


def hooked():
    model = mlp()
    model[2].register_forward_hook(lambda module, inputs, output: None)
    return model


def watched():
    model = mlp()
    model[2].register_full_backward_hook(lambda module, below, above: None)
    return model


def pruned():
    model = mlp()
    prune.l1_unstructured(model[2], "weight", 0.5)
    return model


def computed():
    model = mlp()
    nn.utils.parametrizations.weight_norm(model[2])
    return model


def subclassed():
    class Own(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    model = mlp()
    model[2] = Own(8, 8)
    return model


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (tied, r"leaves 2 .* its weight is shared: 0.weight, 2.weight"),
        (hooked, "leaves 2 .* bears a hook"),
        (watched, "leaves 2 .* bears a hook"),
        (pruned, "leaves 2 .* pruned or computed"),
        (computed, "leaves 2 .* pruned or computed"),
        (subclassed, "leaves 2 .* its type Own may do more"),
    ],
)
def test_what_is_left_is_named(make, reason):
    with pytest.warns(UserWarning, match=reason) as caught:
        expanded = bouton.expand(make())
    assert len(caught) == 1 and len(synapses(expanded)) == 1


def test_mistakes_are_named():
    model = mlp().append(nn.LSTM(3, 2))
    for wrong, message in [
        ({"gamma": 0}, r"expand\(gamma=0\)"),
        ({"gamma": 1.5}, r"expand\(gamma=1.5\)"),
        ({"activation": "wave"}, r"expand\(activation='wave'\): use a callable or one of identity"),
        ({"where": "conv*"}, r"where='conv\*'\) matches no layer with a weight; the model has: 0, 2, 4, 5"),
        ({"where": 3}, "use a glob"),
        ({"where": "4", "readout": "4"}, "found no Linear or convolution. 4: the read-out"),
        (
            {"where": lambda path, module: False},
            "found no Linear or convolution. the model has: 0, 2, 4, 5",
        ),
        ({"readout": "7"}, "readout"),
        ({"where": "5", "readout": ()}, "5: it is of type LSTM"),
    ]:
        with pytest.raises(ValueError, match=message):
            bouton.expand(model, **wrong)
    with pytest.raises(ValueError, match=r"must be a torch.nn.Module"):
        bouton.expand(3)
    handle = bouton.attach(model, None, [bouton.Grapes()])
    with pytest.raises(ValueError, match="bears mechanisms"):
        bouton.expand(model)
    handle.detach()
    bouton.expand(model)


def encoder(**options):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0, **options)
    return nn.TransformerEncoder(layer, 2)


@pytest.mark.filterwarnings("ignore:.*nested tensors")
@pytest.mark.parametrize("activation", ["identity", "tanh"])
def test_a_transformer_computes_the_same_in_training_and_in_evaluation(activation):
    if activation == "identity":
        expanded = bouton.expand(encoder(), readout=())
        assert isinstance(expanded.layers[0].self_attn.out_proj, Expanded)
    else:
        with pytest.warns(UserWarning, match="attention reads its weight without calling it"):
            expanded = bouton.expand(encoder(), readout=(), activation=activation)
        assert not isinstance(expanded.layers[0].self_attn.out_proj, Expanded)
    x, padded = torch.randn(3, 5, 8), torch.zeros(3, 5, dtype=torch.bool)
    padded[0, 3:] = True
    training = expanded(x), expanded(x, src_key_padding_mask=padded)
    expanded.eval()
    with torch.no_grad():  # torch's fused path, which reads weights without calling layers
        torch.testing.assert_close(expanded(x), training[0].detach())
        masked = expanded(x, src_key_padding_mask=padded)
        torch.testing.assert_close(masked[~padded], training[1].detach()[~padded])
        compiled = torch.compile(expanded, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), training[0].detach())


def test_every_synapse_of_an_attention_projection_learns():
    expanded = bouton.expand(nn.TransformerEncoderLayer(8, 2, 16), readout=())
    expanded(torch.randn(5, 3, 8)).square().sum().backward()
    gradient = expanded.self_attn.out_proj.synapses.weight.grad.unflatten(0, (-1, 2))
    torch.testing.assert_close(gradient[:, 0], gradient[:, 1])
    assert gradient.abs().min() > 0


def test_reading_the_weight_of_a_nonlinear_layer_is_refused():
    expanded = bouton.expand(mlp(), activation="tanh")
    with pytest.raises(ValueError, match="no single weight to read"):
        expanded[0].weight + 1


def test_copies_pickles_and_compiled_models_compute_the_same():
    expanded, x = bouton.expand(mlp(), activation="relu"), torch.randn(4, 6)
    expected = expanded(x)
    assert torch.equal(copy.deepcopy(expanded)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(expanded))(x), expected)
    torch.testing.assert_close(torch.compile(expanded, fullgraph=True, backend="eager")(x), expected)


def test_each_layer_has_an_activation_of_its_own():
    expanded = bouton.expand(mlp(), activation=nn.PReLU())
    expanded(torch.randn(4, 6)).sum().backward()
    assert expanded[0].activation is not expanded[2].activation
    assert expanded[0].activation.weight.grad is not None


def test_in_place_activations_and_memory_formats_are_respected():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3))
    for gamma in (1, 2):
        expanded = bouton.expand(model, gamma)
        expanded(torch.randn(2, 3, 8, 8)).sum().backward()
        output = expanded[0](torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last))
        assert output.is_contiguous(memory_format=torch.channels_last)


def test_transposed_convolutions_take_an_output_size():
    layer, x = nn.ConvTranspose2d(2, 4, 3, stride=2), torch.randn(1, 2, 4, 4)
    expanded = bouton.expand(layer, readout=())
    torch.testing.assert_close(expanded(x, output_size=[10, 10]), layer(x, output_size=[10, 10]))


def test_expanding_twice_multiplies():
    model, x = mlp().double(), torch.randn(4, 6).double()
    twice = bouton.expand(bouton.expand(model), 3)
    assert twice[0].synapses.synapses.out_features == 48
    torch.testing.assert_close(twice(x), model(x), rtol=0, atol=1e-12)


def test_alone_it_is_a_larger_learning_rate():
    plain, x = mlp().double(), torch.randn(9, 6).double()
    expanded = bouton.expand(plain, 3, readout=())
    for model, rate in ((plain, 0.3), (expanded, 0.1)):
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(expanded(x), plain(x), rtol=0, atol=1e-12)


def test_every_synapse_has_its_own_rate_and_turnover():
    expanded = bouton.expand(mlp())
    with torch.no_grad():  # equal siblings
        for layer in synapses(expanded):
            for values in (layer.weight, layer.bias):
                values.copy_(values.unflatten(0, (-1, 2)).mean(1).repeat_interleave(2, 0))
    optimizer = torch.optim.SGD(expanded.parameters(), lr=0.1)
    handle = bouton.attach(expanded, optimizer, [bouton.PlasticityDiversity(nu=0.4)])
    expanded(torch.randn(9, 6)).square().sum().backward()
    optimizer.step()
    members = expanded[0].synapses.weight.detach().unflatten(0, (-1, 2))
    moved = expanded[0].synapses.weight.grad.unflatten(0, (-1, 2))[:, 0] != 0
    assert (members[:, 0] != members[:, 1])[moved].all() and moved.any()
    handle.detach()

    before = expanded[0].synapses.weight.detach().clone()
    handle = bouton.attach(expanded, optimizer, [bouton.SpineRemodeling(d_re=1.0)])
    handle.remodel()
    turned = (expanded[0].synapses.weight != before).unflatten(0, (-1, 2))
    assert (turned[:, 0] != turned[:, 1]).any()
