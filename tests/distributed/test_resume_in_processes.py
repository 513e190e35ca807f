"""Resuming with torch.distributed.checkpoint, in the same number of processes or in another."""

import warnings

import pytest
import torch
from launch import FOLDER, check_same, launched
from parallel_nets import alone
from parallel_resume import resume, uninterrupted
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

import bouton

# torch says so wherever there is but one process
pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated"),
]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(kind):
    for results in launched(kind, 2):
        check_same(results[f"resume:{kind}-2"], results[f"save:{kind}-2"])


@pytest.mark.parametrize(("kind", "size"), [("ddp", 2), ("ddp", 4), ("fsdp", 2), ("fsdp", 4), ("hsdp", 4)])
def test_it_is_resumed_in_any_number_of_processes(kind, size):
    for results in launched(kind, size):
        for scene in results:
            if scene.startswith(("save:", "resume:")):
                check_same(results[scene], uninterrupted(), 1e-9)


@pytest.mark.parametrize(("kind", "size"), [("ddp", 2), ("fsdp", 4)])
def test_it_is_resumed_in_one_process(kind, size):
    launched(kind, size)
    check_same(resume(alone, 0, 1, FOLDER / f"{kind}-{size}"), uninterrupted(), 1e-9)


def attached(momentum=0.0):
    layer = nn.Linear(5, 4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=momentum, weight_decay=0.1)
    mechanisms = [
        bouton.Crystallization(),
        bouton.PlasticityDiversity(scope="gradient"),
        bouton.SpineRemodeling(every=1, d_re=1.0),
    ]
    return layer, optimizer, bouton.attach(layer, optimizer, mechanisms)


def states(layer, handle):
    tensors, text = bouton.flatten_state(handle.state_dict())
    return {**tensors, "weight": layer.weight.detach().clone()}, text


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_step_that_torch_makes_for_an_optimizer_state_is_none(momentum):
    layer, optimizer, handle = attached(momentum)
    before, text = states(layer, handle)
    state = get_optimizer_state_dict(layer, optimizer)
    handle.load_state_dict(handle.state_dict())  # as if loaded apart: nothing to warn of
    set_optimizer_state_dict(layer, optimizer, state)
    after, text_after = states(layer, handle)
    check_same(after, before)
    assert text == text_after
    layer(torch.ones(1, 5)).sum().backward()
    optimizer.step()
    assert handle.stats()["SpineRemodeling"]["weight"]["events"] == 1  # a true one counts


def test_an_optimizer_state_without_mechanisms_is_told_of_unless_theirs_was_loaded_apart():
    layer, optimizer, handle = attached(0.9)
    plain = {name: value for name, value in optimizer.state_dict().items() if name != "bouton"}
    saved = handle.state_dict()
    with pytest.warns(UserWarning, match="holds no state of the attached mechanisms"):
        optimizer.load_state_dict(plain)
    layer(torch.ones(1, 5)).sum().backward()
    optimizer.step()
    handle.load_state_dict(saved)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.load_state_dict(plain)
    optimizer.step()
    with pytest.warns(UserWarning, match="holds no state of the attached mechanisms"):
        optimizer.load_state_dict(plain)  # a step has been made since
    assert handle.stats()["SpineRemodeling"]["weight"]["events"] == 0
