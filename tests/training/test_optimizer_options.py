"""Options of torch's optimizers: foreach, fused, capturable, differentiable, maximize."""

import inspect

import oracles
import pytest
import torch
from spelled_out import adamw, assert_same_weights, attached, loss_of, sgd, spelled_out, train
from subjects import EXAMPLES, over_examples
from torch import nn

import bouton

OPTIONS = {
    "foreach": {"foreach": True},
    "for loop": {"foreach": False},
    "fused": {"fused": True},
    "maximize": {"maximize": True},
    "capturable": {"capturable": True},
    "differentiable": {"differentiable": True},
}
OPTIMIZERS = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
}
del OPTIMIZERS["Optimizer"], OPTIMIZERS["SparseAdam"], OPTIMIZERS["LBFGS"]
CASES = {
    f"{name}-{option}": (kind, arguments)
    for name, kind in OPTIMIZERS.items()
    for option, arguments in OPTIONS.items()
    if arguments.keys() <= inspect.signature(kind).parameters.keys()
}
ACTING = {
    name: mechanism for name, mechanism in EXAMPLES.items() if mechanism.site in ("rate", "structure")
}
RATE = bouton.PlasticityDiversity(nu=0.5)
# a minus sign for maximize, so that the run goes the same way
SIGNS = {"maximize": -1.0}


def run(model, optimizer, sign):
    for step in range(4):
        optimizer.zero_grad()
        (sign * loss_of(model, step)).backward()
        optimizer.step()


@pytest.mark.parametrize("option", ["foreach", "for loop", "fused", "maximize"])
@pytest.mark.parametrize("make", [sgd, adamw])
@over_examples
def test_every_mechanism_with_every_implementation(mechanism, make, option):
    def made(parameters):
        return make(parameters, **OPTIONS[option])

    model, optimizer, handle = attached(mechanism, made)
    run(model, optimizer, SIGNS.get(option, 1.0))
    reference, plain = spelled_out(mechanism, handle, make)
    train(reference, plain, 4)
    assert_same_weights(model, reference)


def dense():
    torch.manual_seed(0)
    return nn.Linear(6, 5, bias=False)  # Muon takes matrices only


def outcome(kind, arguments, mechanism, steps=3):
    """The weights before and after each step, or the error that torch raises."""
    layer, weights = dense(), []
    try:
        optimizer = kind(layer.parameters(), lr=0.1, **arguments)
        handle = bouton.attach(layer, optimizer, [mechanism]) if mechanism else None
        for _ in range(steps):
            layer.weight.grad = layer.weight.detach().sin()
            weights.append(layer.weight.detach().clone())
            optimizer.step()
    except (AssertionError, RuntimeError, ValueError) as error:
        return type(error), str(error)
    return [*weights, layer.weight.detach()], handle


@pytest.mark.parametrize("case", CASES)
def test_every_option_of_every_optimizer_scales_the_update_or_raises_what_torch_raises(case):
    plain, _ = expected = outcome(*CASES[case], None, steps=1)
    found, handle = outcome(*CASES[case], RATE, steps=1)
    if isinstance(plain, type):
        assert (found, handle) == expected
        return
    rate = oracles.rates_of(
        handle.state_dict()["claims"]["PlasticityDiversity/weight"]["tensors"][0], RATE.nu
    )
    old, new = plain
    assert (new - old).abs().max() > 0
    torch.testing.assert_close(found[1] - old, rate * (new - old), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("case", CASES)
def test_every_option_of_every_optimizer_is_rewired_or_raises_what_torch_raises(case):
    kind, arguments = CASES[case]
    plain, reason = outcome(kind, arguments, None)
    found, handle = outcome(kind, arguments, bouton.SpineRemodeling(every=2, d_re=1.0))
    if isinstance(plain, type):
        assert issubclass(found, Exception) and reason in handle  # attach may ask before the first step
        return
    assert handle.stats()["SpineRemodeling"]["weight"]["events"] == 1
    assert torch.equal(found[1], plain[1]) and not torch.equal(found[2], plain[2])
    assert found[3].isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="capturable=True needs an accelerator")
@pytest.mark.parametrize("mechanism", ACTING.values(), ids=ACTING)
@pytest.mark.parametrize("name", ["Adam", "AdamW", "RMSprop", "NAdam", "Adamax", "ASGD"])
def test_capturable_optimizers_on_a_device_do_what_others_do(name, mechanism):
    def trained(capturable):
        layer = dense().cuda()
        optimizer = OPTIMIZERS[name](layer.parameters(), lr=0.1, capturable=capturable)
        bouton.attach(layer, optimizer, [mechanism], readout=())
        for _ in range(5):
            layer.weight.grad = layer.weight.detach().sin()
            optimizer.step()
        return layer.weight.detach()

    torch.testing.assert_close(trained(True), trained(False))
