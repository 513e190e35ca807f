"""Saving and resuming with torch.distributed.checkpoint, as the documentation tells users to."""

from __future__ import annotations

import torch
import torch.distributed.checkpoint as dcp
from parallel_nets import OTHERWISE, TOGETHER, Median, alone, start, train, whole
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import bouton

HALF, STEPS = 6, 12
# Some have a state that is made in the first pass or step alone, and not at attach.
LATER = [bouton.FeedbackAlignment(kind="dfa"), *OTHERWISE[1:], Median()]
SAVED = {"together": ("mlp", "adamw", TOGETHER), "later": ("mlp", "adamw", LATER)}


def tensors_of(state):
    """The tensors of a handle's state, by their paths."""
    if isinstance(state, torch.Tensor):
        return {"": state}
    if isinstance(state, int):
        return {"": torch.tensor(state)}
    if isinstance(state, str):
        return {}
    items = state.items() if isinstance(state, dict) else enumerate(state)
    return {f"{key}/{path}": value for key, item in items for path, value in tensors_of(item).items()}


def outcome(model, handle):
    return whole(model.state_dict()) | whole(tensors_of(handle.state_dict()))


def uninterrupted():
    """What one process comes to that never stops."""
    found = {}
    for name, run in SAVED.items():
        model, optimizer, handle = start(alone, *run)
        train(model, optimizer, range(STEPS))
        found |= {f"{name}/{key}": value for key, value in outcome(model, handle).items()}
    return found


def save(wrap, part, parts, folder):
    """Train half of the steps, save, and go on."""
    found = {}
    for name, run in SAVED.items():
        model, optimizer, handle = start(wrap, *run)
        train(model, optimizer, range(HALF), part, parts)
        weights, moments = get_state_dict(model, optimizer)
        dcp.save({"model": weights, "optimizer": moments, "bouton": handle}, checkpoint_id=folder / name)
        train(model, optimizer, range(HALF, STEPS), part, parts)
        found |= {f"{name}/{key}": value for key, value in outcome(model, handle).items()}
    return found


def resume(wrap, part, parts, folder):
    """Take up what :func:`save` left, in fresh objects and maybe in another number of processes."""
    found = {}
    for name, run in SAVED.items():
        model, optimizer, handle = start(wrap, *run)
        weights, moments = get_state_dict(model, optimizer)
        dcp.load({"model": weights, "optimizer": moments, "bouton": handle}, checkpoint_id=folder / name)
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments)
        train(model, optimizer, range(HALF, STEPS), part, parts)
        found |= {f"{name}/{key}": value for key, value in outcome(model, handle).items()}
    return found
