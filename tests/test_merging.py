"""Where a wiring rule sums nodes, a layer makes the sums, in fewer products."""

from contextlib import contextmanager, nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import bouton
from bouton.passes import merging


@contextmanager
def merged_from(uses):
    """Merge where a layer uses its weights so often, whatever it takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merging, "FEW_USES", uses)
        patch.setattr(merging, "FEW_PRODUCTS", 0)
        yield


@pytest.fixture(scope="module", autouse=True)
def always():
    with merged_from(0):
        yield


NEVER = 2**62


LAYERS = {
    "linear": lambda i, o, g, bias: nn.Linear(i, o, bias=bias),
    "conv1d": lambda i, o, g, bias: nn.Conv1d(i, o, 3, padding="same", groups=g, bias=bias),
    "conv2d": lambda i, o, g, bias: nn.Conv2d(i, o, (3, 2), stride=2, padding=1, groups=g, bias=bias),
    "circular": lambda i, o, g, bias: nn.Conv2d(
        i, o, 3, padding=1, padding_mode="circular", dilation=2, bias=bias
    ),
    "conv3d": lambda i, o, g, bias: nn.Conv3d(i, o, 2, groups=g, bias=bias),
}
AXES = {"linear": 0, "conv1d": 1, "conv2d": 2, "circular": 2, "conv3d": 3}


def results(layer, mechanisms, x):
    """The output, and the derivatives of a loss by the input and all parameters."""
    model = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.LazyLinear(2)).double()
    with torch.no_grad():
        torch.manual_seed(1)
        model(x)  # which makes the read-out
        nn.init.normal_(model[3].weight)
    handle = bouton.attach(model, None, mechanisms)
    x = x.detach().requires_grad_()
    with FlopCounterMode(display=False) as flops:
        model(x)
    output = model(x)
    # the derivative by x is differentiated, too
    (pull,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
    (output.sum() + pull.square().sum()).backward()
    handle.detach()
    assert not layer.__dict__.keys() & {"weight", "bias"}
    return [output.detach(), x.grad, *(p.grad for p in layer.parameters())], flops.get_total_flops()


class Halved(bouton.Mechanism):
    """Halves the error at every other node."""

    site = "error"

    def rule(self, synapses):
        factor = torch.ones(len(synapses.weight), dtype=synapses.weight.dtype)
        factor[::2] = 0.5
        return factor


@given(
    name=st.sampled_from(sorted(LAYERS)),
    gamma=st.integers(2, 4),
    groups=st.integers(1, 2),
    sums=st.integers(1, 2),
    bias=st.booleans(),
    batch=st.integers(1, 3),
    errors=st.lists(st.sampled_from([bouton.Grapes(), Halved()]), max_size=2, unique_by=type),
)
def test_outputs_and_derivatives_are_those_of_all_nodes(name, gamma, groups, sums, bias, batch, errors):
    x = torch.randn(batch, 2, *[5] * AXES[name], dtype=torch.float64)
    found = []
    for uses in (0, NEVER):
        torch.manual_seed(0)
        layer = LAYERS[name](2, gamma * groups * sums, groups, bias)
        with merged_from(uses):
            found.append(results(layer, [bouton.MultiSynapse(gamma=gamma), *errors], x))
    (values, flops), (expected, all_flops) = found
    torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-11)
    assert flops < all_flops or errors  # the counter sees inputs


def net(*mechanisms):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(inplace=True), nn.Linear(4, 4), nn.Linear(4, 2))
    return model, bouton.attach(model, None, mechanisms)


SUMS = bouton.MultiSynapse(gamma=2)
INPUTS = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def made(monkeypatch):
    """The shapes of all products that linear layers make."""
    shapes, linear = [], nn.functional.linear

    def noting(source, weight, bias=None):
        shapes.append(tuple(weight.shape))
        return linear(source, weight, bias)

    monkeypatch.setattr(nn.functional, "linear", noting)
    return shapes


MERGED, ALL = [(2, 6), (2, 4), (2, 4)], [(4, 6), (4, 4), (2, 4)]


def test_fewer_nodes_are_made(made):
    model, handle = net(SUMS)
    model(INPUTS)
    assert made == MERGED
    made.clear()
    with torch.no_grad():  # several threads may use the model
        model(INPUTS)
    assert made == ALL
    made.clear()
    with handle.paused():
        model(INPUTS)
    assert made == ALL
    made.clear()
    handle.detach()
    model(INPUTS)
    assert made == ALL


class Louder(bouton.MultiSynapse):
    """Another rule under the same fields."""

    def rule(self, synapses, output):
        return 2 * super().rule(synapses, output)


@pytest.mark.parametrize(
    "mechanisms",
    [
        [Louder()],
        [bouton.MultiSynapse(activation="tanh")],
        [SUMS, bouton.PlasticityDiversity(distribution="activity")],
        [SUMS, bouton.FeedbackAlignment()],
    ],
    ids=str,
)
def test_all_nodes_are_made_where_a_mechanism_needs_them(made, mechanisms):
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    bouton.attach(model, torch.optim.SGD(model.parameters()), mechanisms)
    model(INPUTS)
    assert made == ALL


def test_all_others_go_with_fewer_nodes(made):
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    mechanisms = [SUMS, bouton.Grapes(), bouton.PlasticityDiversity(), bouton.SpineRemodeling()]
    bouton.attach(model, torch.optim.SGD(model.parameters()), mechanisms)
    model(INPUTS)
    assert made == MERGED


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_of_short_weights_are_not_rounded(made, dtype):
    model, _ = net(SUMS)
    model.to(dtype)(INPUTS.to(dtype))
    assert made == ALL


def test_hooks_of_others_find_the_parameters(made):
    model, _ = net(SUMS)

    def bounded(layer, inputs):
        layer.weight.data.clamp_(-0.01, 0.01)

    model[0].register_forward_pre_hook(bounded)
    model(INPUTS)
    assert model[0].weight.abs().max() == torch.tensor(0.01) and made[0] == ALL[0]


def test_a_forward_set_on_a_layer_finds_the_parameters(made):
    model, _ = net(SUMS)
    model[0].forward = lambda x: nn.functional.linear(x, model[0].weight)
    model(INPUTS)
    assert made[0] == ALL[0]


@pytest.mark.parametrize(
    "watch",
    [
        lambda layer: layer.register_forward_hook(lambda layer, inputs, output: None),
        lambda layer: layer.register_full_backward_hook(lambda layer, *errors: None),
        lambda layer: layer.register_full_backward_pre_hook(lambda layer, errors: None),
        lambda layer: nn.modules.module.register_module_forward_hook(lambda layer, *passed: None),
    ],
)
def test_who_sees_inputs_finds_them_with_their_past(made, watch):
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    bouton.attach(model, None, [SUMS, bouton.Grapes()])
    handle = watch(model[1])
    model(INPUTS)
    handle.remove()
    assert made[1] == ALL[1]


@pytest.mark.parametrize("paused_forward", [False, True])
@pytest.mark.parametrize("paused_backward", [False, True])
def test_pauses_count_where_an_error_comes_by(paused_forward, paused_backward):
    found = []
    for uses in (0, NEVER):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 2)).double()
        handle = bouton.attach(model, None, [SUMS, bouton.Grapes()])
        with merged_from(uses):
            with handle.paused() if paused_forward else nullcontext():
                loss = model(INPUTS.double()).square().sum()
            with handle.paused() if paused_backward else nullcontext():
                loss.backward()
        found.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


def test_a_weight_that_was_changed_before_its_error_came_is_an_error():
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 2))
    bouton.attach(model, None, [SUMS, bouton.Grapes()])
    loss = model(INPUTS).sum()
    with torch.no_grad():
        model[2].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")
def test_forward_mode_works_and_is_refused_as_ever():
    model, _ = net(SUMS)
    _, tangent = torch.func.jvp(model, (INPUTS,), (INPUTS,))
    with torch.autograd.forward_ad.dual_level():
        output = model(torch.autograd.forward_ad.make_dual(INPUTS, INPUTS))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(output).tangent, tangent)
    modulated = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    bouton.attach(modulated, None, [SUMS, bouton.Grapes()])
    with torch.autograd.forward_ad.dual_level(), pytest.raises(ValueError, match="forward-mode"):
        modulated(torch.autograd.forward_ad.make_dual(INPUTS, INPUTS))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_pass_that_is_broken_off_leaves_the_parameters(monkeypatch, error):
    model, handle = net(SUMS)
    expected, weight = model(INPUTS), model[0].weight

    def broken(*_):
        raise error("broken off")

    with monkeypatch.context() as patch, pytest.raises(error, match="broken off"):
        patch.setattr(nn.functional, "linear", broken)
        model(INPUTS)
    assert model.state_dict()["0.weight"].shape == (4, 6) and next(model.parameters()) is weight
    assert torch.equal(model(INPUTS), expected) and model[0].weight is weight
    with monkeypatch.context() as patch, pytest.raises(error, match="broken off"):
        patch.setattr(nn.functional, "linear", broken)
        model(INPUTS)
    handle.detach()
    assert model[0].weight is weight


def test_channels_stay_last():
    layer = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
    bouton.attach(nn.Sequential(layer, nn.Conv2d(8, 2, 1)), None, [SUMS])
    output = layer(torch.randn(2, 3, 5, 5).contiguous(memory_format=torch.channels_last))
    assert output.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("others", [[], [bouton.Grapes()]], ids=str)
def test_checkpointing_computes_the_same(others):
    gradients = []
    for checkpointed in (False, True):
        model, _ = net(SUMS, *others)
        x = INPUTS.clone().requires_grad_()
        output = checkpoint(model, x, use_reentrant=False) if checkpointed else model(x)
        output.square().sum().backward()
        gradients.append([x.grad, *(p.grad for p in model.parameters())])
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@pytest.mark.parametrize("others", [[], [bouton.Grapes()]], ids=str)
def test_autocast_rounds_sums_and_not_weights(made, others):
    model, _ = net(SUMS, *others)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(INPUTS)
    output.float().sum().backward()
    assert made == MERGED and model[0].weight.grad.dtype == torch.float32


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_what_is_frozen_is_summed_and_no_gradient_is_made_for_it(frozen):
    found = []
    for uses in (0, NEVER):
        model, _ = net(SUMS)
        getattr(model[0], frozen).requires_grad_(False)
        with merged_from(uses), FlopCounterMode(display=False) as flops:
            model(INPUTS).square().sum().backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append((gradients, flops.get_total_flops()))
    (merged, fewer), (plain, more) = found
    assert merged.keys() == plain.keys() and f"0.{frozen}" not in merged
    torch.testing.assert_close(merged, plain)
    readout = 3 * 2 * len(INPUTS) * model[3].weight.numel()  # forward, and for its inputs and its weight
    assert 2 * (fewer - readout) == more - readout


def test_members_of_a_group_take_the_same_step():
    model, _ = net(SUMS)
    model(INPUTS).square().sum().backward()
    for layer in model[0], model[2]:
        assert torch.equal(layer.weight.grad[::2], layer.weight.grad[1::2])
