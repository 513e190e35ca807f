"""Optimizers that are given a closure, and closures that run the model several times."""

import pytest
import torch
from spelled_out import assert_same_weights, attached, batch, sgd, spelled_out
from subjects import over_examples
from torch.nn import functional as F

KINDS = {
    "sgd": sgd,
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.2, max_iter=4),
    "lbfgs with a line search": lambda p: torch.optim.LBFGS(p, max_iter=4, line_search_fn="strong_wolfe"),
}


def train(model, optimizer, passes):
    for step in range(4):
        x, y = batch(step)

        def closure(x=x, y=y):
            optimizer.zero_grad()
            total = 0.0
            for part, labels in zip(x.chunk(passes), y.chunk(passes), strict=True):
                loss = F.cross_entropy(model(part), labels) / passes
                loss.backward()
                total += float(loss.detach())
            return total

        optimizer.step(closure)


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
@over_examples
def test_a_closure_is_run_as_by_a_plain_optimizer(mechanism, kind, passes):
    model, optimizer, handle = attached(mechanism, KINDS[kind])
    train(model, optimizer, passes)
    reference, plain = spelled_out(mechanism, handle, KINDS[kind])
    train(reference, plain, passes)
    # a line search compares losses, and amplifies rounding
    assert_same_weights(model, reference, rtol=1e-6, atol=1e-8)
