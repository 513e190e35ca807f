"""Averages of the weights along a run: AveragedModel, update_bn, and swapping weights in and out."""

import copy

import pytest
import torch
from spelled_out import adamw, attached, batch, loss_of, train
from subjects import build, over_examples
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn, update_bn

import bouton

DECAY, STEPS = 0.75, 4


def ema(trajectory):
    average = trajectory[0]
    for weights in trajectory[1:]:
        average = [DECAY * old + (1 - DECAY) * new for old, new in zip(average, weights, strict=True)]
    return average


def swa(trajectory):
    return [sum(values) / len(values) for values in zip(*trajectory, strict=True)]


WAYS = {"ema": (get_ema_multi_avg_fn(DECAY), ema), "swa": (get_swa_multi_avg_fn(), swa)}


@pytest.mark.parametrize("way", WAYS)
@over_examples
def test_averages_are_those_of_the_trajectory(mechanism, way):
    function, by_hand = WAYS[way]
    runs = []
    for averaged in (True, False):
        model, optimizer, handle = attached(mechanism, adamw)
        average = AveragedModel(model, multi_avg_fn=function) if averaged else None
        trajectory = []
        for step in range(STEPS):
            train(model, optimizer, 1, start=step)
            trajectory.append([parameter.detach().clone() for parameter in model.parameters()])
            if average:
                average.update_parameters(model)
        runs.append((trajectory, average))
        own = str(handle.state_dict())
    (trajectory, average), (alone, _) = runs
    for averaged, value in zip(average.module.parameters(), by_hand(trajectory), strict=True):
        # torch's running mean divides by a count in single precision
        torch.testing.assert_close(averaged.detach(), value, rtol=1e-6, atol=1e-8)
    assert all(torch.equal(a, b) for a, b in zip(trajectory[-1], alone[-1], strict=True))

    # the average computes what the model would with these weights: MultiSynapse is part of the model
    x, _ = batch(99)
    found = average(x)
    assert str(handle.state_dict()) == own
    torch.nn.utils.vector_to_parameters(
        nn.utils.parameters_to_vector(average.module.parameters()), model.parameters()
    )
    assert torch.equal(found, model(x))


@over_examples
def test_weights_that_are_swapped_in_and_out_leave_the_run_alone(mechanism):
    runs = []
    for swapped in (True, False):
        model, optimizer, handle = attached(mechanism, adamw)
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
        for step in range(STEPS):
            train(model, optimizer, 1, start=step)
            average.update_parameters(model)
            if swapped:
                own = copy.deepcopy(model.state_dict())
                model.load_state_dict(average.module.state_dict())
                with torch.no_grad():
                    loss_of(model.eval(), 99)
                model.train().load_state_dict(own)
        runs.append([*model.state_dict().values(), str(handle.state_dict())])
    *weights, states = runs[0]
    *expected, other_states = runs[1]
    assert all(torch.equal(a, b) for a, b in zip(weights, expected, strict=True)) and states == other_states


@over_examples
def test_statistics_of_batch_norm_are_those_of_the_averaged_weights(mechanism):
    model, optimizer = build("residual")
    handle = bouton.attach(model, optimizer, [mechanism])
    average = AveragedModel(model)
    for _ in range(3):
        x, y = torch.randn(8, 36), torch.arange(8) % 4
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        average.update_parameters(model)
    batches = [torch.randn(8, 36) for _ in range(3)]
    states, moving = str(handle.state_dict()), copy.deepcopy(model.state_dict())
    norm, inputs = average.module.blocks[1].norm, []
    norm.register_forward_pre_hook(lambda layer, arguments: inputs.append(arguments[0].detach().clone()))
    update_bn(batches, average)
    means = torch.stack([x.mean((0, 2, 3)) for x in inputs])
    variances = torch.stack([x.var((0, 2, 3)) for x in inputs])
    torch.testing.assert_close(norm.running_mean, means.mean(0))
    torch.testing.assert_close(norm.running_var, variances.mean(0))
    assert str(handle.state_dict()) == states
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in moving.items())
