"""Layers of zeros, of one node, of one input, of nothing; batches of none; a model of one layer."""

import itertools
import math

import pytest
import torch
from numbers_given import EXAMPLES
from torch import nn

import bouton
from bouton.mechanisms.grapes import responsibility
from bouton.sites import RandomStream, Synapses

over_examples = pytest.mark.parametrize("mechanism", EXAMPLES.values(), ids=EXAMPLES)


def net(inputs, nodes, dtype=torch.float32):
    """Four layers, of which the third has so many inputs and nodes."""
    torch.manual_seed(0)
    sizes = [4, 4, inputs, nodes, 2]
    layers = [[nn.Linear(*pair), nn.Tanh()] for pair in itertools.pairwise(sizes)]
    return nn.Sequential(*itertools.chain(*layers)).to(dtype)


def train(model, optimizer):
    for batch in (3, 0, 1, 2):
        optimizer.zero_grad()
        model(torch.ones(batch, 4, dtype=model[0].weight.dtype)).sum().backward()
        optimizer.step()


def check(handle, model):
    """All weights, and all that is told of them, are finite."""
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    for own in handle.stats().values():
        assert all(math.isfinite(number) for numbers in own.values() for number in numbers.values())
    assert "4.weight" in str(handle.report())


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")  # torch's, of layers without nodes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@over_examples
def test_layers_and_batches_of_any_size(mechanism, dtype):
    for inputs, nodes in itertools.product((0, 1, 4), (0, 1, 4)):
        model = net(inputs, nodes, dtype)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        handle = bouton.attach(model, optimizer, [mechanism])
        train(model, optimizer)
        check(handle, model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@over_examples
def test_weights_of_zeros_alone(mechanism, dtype):
    model = net(4, 4, dtype)
    for parameter in model.parameters():
        parameter.data.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = bouton.attach(model, optimizer, [mechanism])
    check(handle, model)
    train(model, optimizer)
    check(handle, model)


def test_what_rules_say_of_zeros_alone():
    synapses = Synapses(
        torch.zeros(3, 2), torch.tensor([[0.0, 1.0]]).expand(3, 2), stream=RandomStream(0, "")
    )
    ones = torch.ones(3, 2)
    assert torch.equal(bouton.Grapes().rule(synapses), ones[:, 0])
    assert torch.equal(bouton.Grapes(clip=None, normalize=True).rule(synapses), ones[:, 0])
    torch.testing.assert_close(bouton.VolumePlasticity(spread=0).rule(synapses), ones)
    assert not bouton.SpineRemodeling().rule(synapses).changed.any()
    assert not bouton.SpineRemodeling(redraw="published").rule(synapses).changed.any()
    for mechanism in (bouton.DalePrinciple(), bouton.Crystallization()):
        synapses.state.update(mechanism.prepare(synapses))
    assert synapses.state["sign"].tolist() == [[1, 1]]
    assert not bouton.DalePrinciple().rule(synapses).changed.any()
    # nothing is below a share of nothing, and every pull is above the mean
    torch.testing.assert_close(
        bouton.Crystallization().rule(synapses), torch.tensor([[1, 0.6]]).expand(3, 2)
    )


def test_a_row_of_zeros_and_a_node_alone():
    assert responsibility(torch.tensor([[0.0, 0.0], [2.0, 2.0]]), clip=None).tolist() == [0, 2]
    assert responsibility(torch.tensor([[0.0, 0.0], [2.0, 2.0]])).tolist() == [1, 2]
    assert responsibility(torch.tensor([[3.0, 4.0]])).tolist() == [2]
    assert responsibility(torch.tensor([[3.0, 4.0]]), normalize=True).tolist() == [1]
    assert responsibility(torch.zeros(1, 2)).tolist() == [1]


@over_examples
def test_a_model_of_one_layer(mechanism):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    arguments = model, optimizer, [mechanism]
    if getattr(mechanism, "mode", None) == "presynaptic":
        with pytest.raises(ValueError, match="the presynaptic form leaves the first layer as it is"):
            bouton.attach(*arguments, readout=())
        return
    # direct feedback needs a read-out; others would leave it
    handle = bouton.attach(*arguments) if mechanism.direct else bouton.attach(*arguments, readout=())
    for _ in range(3):
        model(torch.ones(2, 1)).sum().backward()
        optimizer.step()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    for numbers in handle.stats()[type(mechanism).__name__].values():
        assert all(math.isfinite(number) for number in numbers.values())
