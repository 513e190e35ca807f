"""Promises 2 and 3: same checkpoints with and without, and exact detach."""

from subjects import build, over_examples, over_models, over_optimizers, same, train

import bouton


@over_models
@over_examples
def test_checkpoints_fit_both_ways(mechanism, model_name):
    plain, _ = build(model_name)
    model, optimizer = build(model_name)
    handle = bouton.attach(model, optimizer, [mechanism])
    train(model, optimizer, steps=2)
    shapes = {name: value.shape for name, value in plain.state_dict().items()}
    assert {name: value.shape for name, value in model.state_dict().items()} == shapes
    plain.load_state_dict(model.state_dict(), strict=True)
    model.load_state_dict(plain.state_dict(), strict=True)
    assert list(dict(model.named_buffers())) == list(dict(plain.named_buffers()))
    handle.detach()


def everything(model, optimizer):
    """All names by which something could be left behind on a model, its weights or its optimizer."""
    found = {}
    for path, module in model.named_modules():
        found[path] = {
            name: list(value) if isinstance(value, dict) else name
            for name, value in module.__dict__.items()
        }
    for name, parameter in model.named_parameters():
        found[name] = (sorted(parameter.__dict__), list(parameter._backward_hooks or ()))
    found[""]["optimizer"] = {
        name: list(value) for name, value in optimizer.__dict__.items() if name.endswith("_hooks")
    }
    return found


@over_models
@over_examples
def test_detach_leaves_nothing(mechanism, model_name):
    plain, plain_optimizer = build(model_name)
    model, optimizer = build(model_name)
    handle = bouton.attach(model, optimizer, [mechanism])
    assert everything(model, optimizer) != everything(plain, plain_optimizer)
    train(model, optimizer, steps=2)
    train(plain, plain_optimizer, steps=2)  # some modules keep things of a forward pass
    handle.detach()
    assert everything(model, optimizer) == everything(plain, plain_optimizer)
    handle.detach()  # twice is no mistake


@over_optimizers
@over_examples
def test_training_after_detach_is_plain(mechanism, optimizer_name):
    model, optimizer = build("residual", optimizer_name)
    plain = train(*build("residual", optimizer_name), steps=3)
    bouton.attach(model, optimizer, [mechanism]).detach()
    assert same(train(model, optimizer, steps=3), plain)
