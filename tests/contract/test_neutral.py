"""Promise 1: at zero strength, training is bit-identical to plain training."""

import pytest
import torch
from subjects import build, over_neutral, over_pairs, same, train

import bouton


@over_pairs
@over_neutral
def test_zero_strength_leaves_every_bit(mechanism, optimizer_name, model_name):
    plain = train(*build(model_name, optimizer_name), steps=6)
    model, optimizer = build(model_name, optimizer_name)
    bouton.attach(model, optimizer, [mechanism])
    assert same(train(model, optimizer, steps=6), plain)


@over_pairs
def test_all_together_at_zero_strength_leave_every_bit(optimizer_name, model_name):
    plain = train(*build(model_name, optimizer_name), steps=6)
    model, optimizer = build(model_name, optimizer_name)
    bouton.attach(model, optimizer, [entry.neutral[0] for entry in bouton.registry().values()])
    assert same(train(model, optimizer, steps=6), plain)


@over_neutral
def test_zero_strength_leaves_every_bit_in_another_memory_format_and_precision(mechanism):
    def run(mechanisms):
        model, _ = build("residual")
        model = model.to(memory_format=torch.channels_last, dtype=torch.bfloat16)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        if mechanisms:
            bouton.attach(model, optimizer, mechanisms)
        return train(model, optimizer, steps=5, dtype=torch.bfloat16)

    assert same(run([mechanism]), run([]))


@pytest.mark.parametrize("entry", bouton.registry().values(), ids=bouton.registry())
def test_every_example_does_change_training(entry):
    """Otherwise the tests above would pass for a mechanism that is never called."""
    plain = train(*build("mlp"), steps=5)
    for example in entry.examples:
        model, optimizer = build("mlp")
        bouton.attach(model, optimizer, [example])
        assert not same(train(model, optimizer, steps=5), plain)
