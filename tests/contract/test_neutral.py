"""Promise 1: at zero strength, training is bit-identical to plain training."""

import pytest
from subjects import NEUTRAL, build, over_models, over_neutral, over_optimizers, same, train

import bouton


@over_models
@over_optimizers
@over_neutral
def test_zero_strength_leaves_every_bit(mechanism, optimizer_name, model_name):
    plain = train(*build(model_name, optimizer_name), steps=20)
    model, optimizer = build(model_name, optimizer_name)
    bouton.attach(model, optimizer, [mechanism])
    assert same(train(model, optimizer, steps=20), plain)


@over_models
@over_optimizers
def test_all_together_at_zero_strength_leave_every_bit(optimizer_name, model_name):
    plain = train(*build(model_name, optimizer_name), steps=20)
    model, optimizer = build(model_name, optimizer_name)
    bouton.attach(model, optimizer, list(NEUTRAL.values()))
    assert same(train(model, optimizer, steps=20), plain)


@pytest.mark.parametrize("entry", bouton.registry().values(), ids=bouton.registry())
def test_every_example_does_change_training(entry):
    """Otherwise the tests above would pass for a mechanism that is never called."""
    plain = train(*build("mlp"), steps=5)
    for example in entry.examples:
        model, optimizer = build("mlp")
        bouton.attach(model, optimizer, [example])
        assert not same(train(model, optimizer, steps=5), plain)
