"""Modules in wrappers keep their own names, and so their draws, states and where=."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

import bouton
from bouton.synapse import find_groups


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8))
        self.scale = nn.Parameter(torch.ones(2, 2))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.blocks(x))


def compiled_block(model):
    model.blocks = torch.compile(model.blocks, backend="eager")
    return model


def checkpointed_block(model):
    model.blocks[0] = checkpoint_wrapper(model.blocks[0])
    return model


def parallel_block(model):
    model.blocks = nn.DataParallel(model.blocks)
    return model


WRAPPERS = [
    lambda model: torch.compile(model, backend="eager"),
    compiled_block,
    checkpointed_block,
    nn.DataParallel,
    lambda model: nn.DataParallel(compiled_block(checkpointed_block(model))),
    lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
    parallel_block,
]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_names_are_those_of_the_model_within(wrap):
    plain = Named()
    wrapped = wrap(copy.deepcopy(plain))
    assert [g.name for g in find_groups(wrapped)] == [g.name for g in find_groups(plain)]
    mechanisms = [bouton.PlasticityDiversity(where="blocks.*"), bouton.Grapes()]
    handles = [
        bouton.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), mechanisms)
        for model in (plain, wrapped)
    ]
    reports = [str(handle.report()) for handle in handles]
    assert reports[0] == reports[1]
    assert "scale (2, 2)" in reports[0]
    assert handles[0].stats() == handles[1].stats()  # the draws of the rates hang on the names
    handles[1].load_state_dict(handles[0].state_dict())
    bouton.detach(wrapped)


def test_an_averaged_model_is_a_model_of_its_own():
    model = AveragedModel(nn.Linear(3, 2))
    assert [g.name for g in find_groups(model)] == ["module.weight"]
