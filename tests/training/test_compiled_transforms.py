"""torch.func inside of torch.compile: the gradients of eager mode, or its refusals."""

import pytest
import torch
from subjects import EXAMPLES, build
from torch.func import functional_call, grad, jvp, vmap

import bouton

# one of each kind of hook; compiling is slow
NAMES = [
    "Grapes-0",
    "MultiSynapse-1",
    "FeedbackAlignment-0",
    "PlasticityDiversity-8",
    "PlasticityDiversity-9",
]


def loss(model, parameters, x):
    return functional_call(model, parameters, (x,)).square().sum()


def per_sample(model, parameters, x):
    return vmap(grad(lambda p, a: loss(model, p, a[None])), (None, 0))(parameters, x)


def of_a_mapped_loss(model, parameters, x):
    return grad(lambda p: vmap(lambda a: loss(model, p, a))(x).sum())(parameters)


def forward_mode(model, parameters, x):
    return jvp(lambda a: loss(model, parameters, a), (x,), (torch.ones_like(x),))


def outcome(way, *arguments):
    try:
        return way(*arguments)
    except ValueError as error:
        return str(error)


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch._dynamo.reset()


# torch compiles some forward-mode formulas by a script that it has deprecated itself
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")
# and its compiler makes an object of every function of autograd that it meets
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("way", [per_sample, of_a_mapped_loss, forward_mode])
@pytest.mark.parametrize("name", NAMES)
def test_as_in_eager_mode(name, way):
    model, optimizer = build("mlp")
    bouton.attach(model, optimizer, [EXAMPLES[name]])
    arguments = model, {key: value.detach() for key, value in model.named_parameters()}, torch.randn(8, 36)
    expected = outcome(way, *arguments)
    found = outcome(torch.compile(way, backend="aot_eager"), *arguments)
    if isinstance(expected, str):
        assert found.startswith(expected)
    else:
        torch.testing.assert_close(found, expected)


def test_one_graph_is_refused_by_name():
    model, _ = build("mlp")
    bouton.attach(model, None, [bouton.Grapes()])
    parameters = {key: value.detach() for key, value in model.named_parameters()}
    with pytest.raises(Exception, match=r"Grapes/0\.weight modulates no error inside a graph"):
        torch.compile(per_sample, backend="aot_eager", fullgraph=True)(
            model, parameters, torch.randn(8, 36)
        )
