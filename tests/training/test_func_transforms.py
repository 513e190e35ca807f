"""torch.func: other tensors in place of parameters, and derivatives that are taken without backward()."""

import pytest
import torch
from nets import NETS
from spelled_out import CLASSES, INPUTS, attached, batch
from subjects import EXAMPLES, over_examples
from torch import nn
from torch.func import functional_call, grad, jacrev, stack_module_state, vjp, vmap
from torch.nn import functional as F

import bouton

UNSEEN = r"PlasticityDiversity/0\.weight counts a layer's outputs, which torch\.func's transforms"
FEEDBACK = r"FeedbackAlignment/0\.weight keeps errors from one layer to the next"
STANDS_IN = (
    r"(PlasticityDiversity/0|Grapes/2)\.weight scales the gradient of the parameter, and another tensor"
)


def refusal(mechanism, transformed=True):
    """What the message says where a mechanism cannot act on tensors that stand in for parameters."""
    if mechanism.scope == "gradient":
        return STANDS_IN
    if transformed and isinstance(mechanism, bouton.FeedbackAlignment):
        return FEEDBACK
    return UNSEEN if transformed and mechanism.observes else None


def others(model):
    """Parameters that differ from the model's own, also in the nodes' shares of weight."""
    generator = torch.Generator().manual_seed(7)
    return {
        name: torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for name, value in model.named_parameters()
    }


def loss_with(model, parameters, x, y):
    return F.cross_entropy(functional_call(model, parameters, (x,)), y)


def expected(mechanism, model, handle, parameters):
    """Gradients by backward() of a copy that holds these parameters."""
    x, y = batch(0)
    other, _, own = attached(mechanism)
    other.load_state_dict(parameters)
    # feedback is drawn at the first error, and the same for both
    own.load_state_dict(handle.state_dict())
    F.cross_entropy(other(x), y).backward()
    return {name: parameter.grad for name, parameter in other.named_parameters()}


def by_autograd(model, parameters, x, y):
    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    gradients = torch.autograd.grad(loss_with(model, leaves, x, y), list(leaves.values()))
    return dict(zip(leaves, gradients, strict=True))


def by_stateless(model, parameters, x, y):
    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    logits = torch.nn.utils.stateless.functional_call(model, leaves, (x,))
    gradients = torch.autograd.grad(F.cross_entropy(logits, y), list(leaves.values()))
    return dict(zip(leaves, gradients, strict=True))


def by_grad(model, parameters, x, y):
    return grad(lambda p: loss_with(model, p, x, y))(parameters)


def by_vjp(model, parameters, x, y):
    loss, pull = vjp(lambda p: loss_with(model, p, x, y), parameters)
    return pull(torch.ones_like(loss))[0]


def by_jacrev(model, parameters, x, y):
    return jacrev(lambda p: loss_with(model, p, x, y))(parameters)


def per_sample(model, parameters, x, y):
    """One gradient for each sample, as in differential privacy, and then their mean."""
    gradients = vmap(grad(lambda p, a, b: loss_with(model, p, a[None], b[None])), (None, 0, 0))
    return {name: value.mean(0) for name, value in gradients(parameters, x, y).items()}


def of_a_mapped_loss(model, parameters, x, y):
    def total(p):
        return vmap(lambda a, b: loss_with(model, p, a, b))(x, y).mean()

    return grad(total)(parameters)


def mapped_then_backward(model, parameters, x, y):
    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    vmap(lambda a, b: loss_with(model, leaves, a, b))(x, y).mean().backward()
    return {name: leaf.grad for name, leaf in leaves.items()}


WAYS = {
    way.__name__: way
    for way in (by_grad, by_vjp, by_jacrev, per_sample, of_a_mapped_loss, mapped_then_backward)
}


def check(mechanism, way, message):
    model, _, handle = attached(mechanism)
    x, y = batch(0)
    F.cross_entropy(model(x), y).backward()  # draws the feedback
    model.zero_grad()
    parameters = others(model)
    if message:
        with pytest.raises(ValueError, match=message):
            way(model, parameters, x, y)
        return
    found, oracle = way(model, parameters, x, y), expected(mechanism, model, handle, parameters)
    for name, gradient in oracle.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)
    assert all(parameter.grad is None for parameter in model.parameters())


@over_examples
def test_functional_call_acts_on_the_parameters_that_it_is_given(mechanism):
    check(mechanism, by_autograd, refusal(mechanism, transformed=False))


# stateless.functional_call is deprecated, and still there
@pytest.mark.filterwarnings("ignore:.*stateless.functional_call.* is deprecated")
@over_examples
def test_the_older_functional_call(mechanism):
    check(mechanism, by_stateless, refusal(mechanism, transformed=False))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@over_examples
def test_every_way_gives_the_gradients_of_backward_or_says_that_it_cannot(mechanism, way):
    check(mechanism, way, refusal(mechanism))


@over_examples
def test_what_stands_in_without_a_gradient_is_welcome(mechanism):
    """As where averaged weights are evaluated."""
    model, _, _ = attached(mechanism)
    parameters, (x, _) = others(model), batch(0)
    other, _, _ = attached(mechanism)
    other.load_state_dict(parameters)
    assert torch.equal(functional_call(model, parameters, (x,)), other(x))
    if not isinstance(mechanism, bouton.FeedbackAlignment):
        with torch.no_grad():
            found = vmap(lambda a: functional_call(model.eval(), parameters, (a,)))(x)
            torch.testing.assert_close(found, other(x))


@pytest.mark.parametrize("net", ["mlp", "residual", "tied"])
def test_per_sample_gradients_in_other_nets(net):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = NETS[net]().double()
    if net == "residual":
        for block in model.blocks:
            block.norm = nn.Identity()  # its statistics are those of the batch
    bouton.attach(model, None, [bouton.Grapes(clip=None), bouton.MultiSynapse()])
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    x, y = torch.randn(5, 36, dtype=torch.float64), torch.arange(5) % 4
    F.cross_entropy(model(x), y).backward()
    found = per_sample(model, parameters, x, y)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-9, atol=1e-12)


def test_a_pause_reaches_what_was_made_before():
    model, _, handle = attached(bouton.Grapes())
    plain, _, own = attached(bouton.Grapes())
    own.detach()
    parameters, (x, y) = others(model), batch(0)
    loss, pull = vjp(lambda p: loss_with(model, p, x, y), parameters)
    with handle.paused():
        found = pull(torch.ones_like(loss))[0]
    oracle = by_grad(plain, parameters, x, y)
    assert all(torch.equal(found[name], gradient) for name, gradient in oracle.items())


def test_an_ensemble_has_factors_for_each_model():
    models = []
    for seed in range(3):
        torch.manual_seed(seed)
        models.append(nn.Sequential(nn.Linear(INPUTS, 8), nn.ReLU(), nn.Linear(8, CLASSES)).double())
    handles = [bouton.attach(model, None, [bouton.Grapes(clip=None)]) for model in models]
    x, y = batch(0)
    for model in models:
        F.cross_entropy(model(x), y).backward()
    parameters, buffers = stack_module_state(models)
    losses = vmap(lambda p, b: F.cross_entropy(functional_call(models[0], (p, b), (x,)), y))
    losses(parameters, buffers).sum().backward()
    for name, stacked in parameters.items():
        for index, model in enumerate(models):
            torch.testing.assert_close(stacked.grad[index], dict(model.named_parameters())[name].grad)
    assert len(handles) == 3


def penalty_by_backward(model, x, y):
    """The gradient of a gradient's size, by building the graph of the first one."""
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(F.cross_entropy(model(x), y), parameters, create_graph=True)
    return torch.autograd.grad(sum(gradient.square().sum() for gradient in gradients), parameters)


@pytest.mark.parametrize("name", ["Grapes-0", "Grapes-3", "MultiSynapse-1"])
def test_nested_transforms_act_at_every_level(name):
    model, _, _ = attached(EXAMPLES[name])
    x, y = batch(0)

    def size(parameters):
        gradients = grad(lambda p: loss_with(model, p, x, y))(parameters)
        return sum(gradient.square().sum() for gradient in gradients.values())

    found = grad(size)({name: value.detach() for name, value in model.named_parameters()})
    for ours, oracle in zip(found.values(), penalty_by_backward(model, x, y), strict=True):
        torch.testing.assert_close(ours, oracle, rtol=1e-9, atol=1e-12)
