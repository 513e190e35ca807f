"""Training in several processes comes to what one process comes to on the same batches."""

import pytest
import torch
from launch import check_same, launched, played
from parallel_nets import RUNS, STEPS, alone, play, start, train, whole

# In double precision: 50 steps left a difference of 1e-15, or 1e-10 where AdamW divides the gradients of
# attention's key bias, which are rounding errors, by their own size.
TOLERANCE = 1e-9


@pytest.mark.parametrize(("kind", "size", "scene"), played())
def test_all_processes_hold_what_one_process_comes_to(kind, size, scene):
    first, *others = (results[scene] for results in launched(kind, size))
    for other in others:
        check_same(other, first)
    check_same(first, play(scene), TOLERANCE)


@pytest.mark.parametrize("name", RUNS)
def test_every_run_differs_from_plain_training(name):
    """So that the comparison above says something."""
    model, optimizer, handle = start(alone, *RUNS[name])
    handle.detach()
    train(model, optimizer, range(STEPS))
    plain = whole(model.state_dict())
    other = play(name)
    assert any(not torch.allclose(other[key], plain[key], rtol=0, atol=1e-6) for key in plain)
