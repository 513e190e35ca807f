"""Every registered mechanism on nets of snntorch, by the same call as on any other model."""

import copy
import functools

import oracles
import pytest
import snntorch as snn
import torch
from snntorch import utils
from spiking_nets import (
    NETS,
    OPTIMIZERS,
    READOUTS,
    batch,
    build,
    forget,
    loss_of,
    sequential,
    train,
    unroll,
)
from torch import nn

import bouton
from bouton.sites import RandomStream, Synapses

NEUTRAL, EXAMPLES = (
    {
        f"{name}-{number}": mechanism
        for name, entry in bouton.registry().items()
        for number, mechanism in enumerate(getattr(entry, kind))
    }
    for kind in ("neutral", "examples")
)
RATES = {name: m for name, m in EXAMPLES.items() if m.site == "rate" and m.scope == "update"}
STEPS = 3  # of the optimizer; enough for the examples of a structure mechanism to act

over_nets = pytest.mark.parametrize("net_name", NETS)
over_optimizers = pytest.mark.parametrize("optimizer_name", OPTIMIZERS)


def over(mechanisms):
    return pytest.mark.parametrize("mechanism", mechanisms.values(), ids=mechanisms)


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@functools.cache
def plainly_trained(net_name, optimizer_name):
    return train(*build(net_name, optimizer_name), STEPS)


def attached(net_name, optimizer_name, mechanism):
    net, optimizer = build(net_name, optimizer_name)
    handle = bouton.attach(net, optimizer, [mechanism], seed=3, readout=READOUTS.get(net_name))
    return net, optimizer, handle


@over_nets
def test_the_nets_do_spike(net_name):
    """Otherwise everything below would be said of nets that compute nothing."""
    net, _ = build(net_name)
    shares = {}
    for path, module in net.named_modules():
        if isinstance(module, snn.SpikingNeuron):

            def watch(module, inputs, output, path=path):
                spikes = output if isinstance(output, torch.Tensor) else output[0]
                shares.setdefault(path, []).append(float(spikes.detach().mean()))

            module.register_forward_hook(watch)
    unroll(net, batch(0)[0])
    for found in shares.values():
        assert 0.01 < sum(found) / len(found) < 0.9


@over_nets
@over_optimizers
@over(NEUTRAL)
def test_zero_strength_leaves_every_bit(mechanism, optimizer_name, net_name):
    net, optimizer, _ = attached(net_name, optimizer_name, mechanism)
    assert same(train(net, optimizer, STEPS), plainly_trained(net_name, optimizer_name))


@over_nets
@over(EXAMPLES)
def test_trains_and_comes_off(mechanism, net_name):
    optimizer_name = "adamw"
    net, optimizer, handle = attached(net_name, optimizer_name, mechanism)
    report = handle.report()
    assert [row.weight for row in report.rows] == [
        f"{path}.weight"
        for path, module in net.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    trained = train(net, optimizer, STEPS)
    assert all(value.isfinite().all() for value in trained.values())
    assert not same(trained, plainly_trained(net_name, optimizer_name))
    assert handle.stats()

    handle.detach()
    plain, plain_optimizer = build(net_name, optimizer_name)
    plain.load_state_dict(net.state_dict())
    plain_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert same(train(net, optimizer, 1), train(plain, plain_optimizer, 1))


@over_nets
@over_optimizers
@over(RATES)
def test_rates_scale_the_plain_update(mechanism, optimizer_name, net_name):
    """dw = r * dw_plain."""
    net, optimizer, _ = attached(net_name, optimizer_name, mechanism)
    plain, plain_optimizer = build(net_name, optimizer_name)
    groups = bouton.find_groups(net, READOUTS.get(net_name))
    before = {group.name: group.weight.detach().clone() for group in groups}
    outputs = {group.name: [] for group in groups}
    for group in groups:
        group.layers[0].register_forward_hook(lambda *call, name=group.name: outputs[name].append(call[-1]))
    scaled, moved = train(net, optimizer, 1), train(plain, plain_optimizer, 1)
    for group in groups:
        old = before[group.name]
        rate = torch.ones_like(old)
        if mechanism.serves(group) is None:
            stream = RandomStream(3, f"{type(mechanism).__name__}/{group.name}")
            axis, depth = group.layout.output_axis, group.depth
            synapses = Synapses(old, group.weight.grad, axis=axis, stream=stream, depth=depth)
            synapses.state.update(mechanism.prepare(synapses))
            for output in outputs[group.name]:  # one for each time step
                mechanism.observe(synapses, output.detach())
            rate = mechanism.rule(synapses)
            rate = rate.reshape(-1, *[1] * (old.ndim - 1)) if rate.ndim == 1 else rate
        update = moved[group.name] - old
        assert update.abs().max() > 0
        expected = rate * update
        torch.testing.assert_close(scaled[group.name] - old, expected, rtol=1e-4, atol=1e-7)


def write_into(net, net_name, change):
    """Change the output of each hidden layer, at each time step, by ``change(group, output)``."""
    for group in bouton.find_groups(net, READOUTS.get(net_name)):
        layer = group.layers[0]
        if not group.readout:

            def forward(x, plain=layer.forward, group=group):
                return change(group, plain(x))

            layer.forward = forward


def assert_same_gradients(net_name, mechanism, change):
    by_hand, _ = build(net_name)
    write_into(by_hand, net_name, change)
    net, _, _ = attached(net_name, "sgd", mechanism)
    losses = [loss_of(model, 0) for model in (net, by_hand)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    for ours, written in zip(net.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, written.grad)


@over_nets
@pytest.mark.parametrize("clip", [None, (1.0, 2.0)])
def test_errors_are_modulated_at_each_time_step_as_if_written_into_the_net(clip, net_name):
    def modulate(group, output):
        factor = torch.tensor(oracles.responsibility(group.weight, clip, normalize=False))
        return oracles.Scaled.apply(output, factor.reshape(-1, *[1] * (-1 - group.layout.output_axis)))

    assert_same_gradients(net_name, bouton.Grapes(clip=clip), modulate)


@over_nets
def test_currents_are_pooled_at_each_time_step_as_if_written_into_the_net(net_name):
    def pool(group, output):
        pairs = output.unflatten(group.layout.output_axis, (-1, 2))
        axis = group.layout.output_axis
        return pairs.sum(axis).repeat_interleave(2, axis)

    assert_same_gradients(net_name, bouton.MultiSynapse(gamma=2), pool)


@over_nets
@over(EXAMPLES)
def test_copies_go_on_alike_and_apart(mechanism, net_name):
    net, optimizer, handle = attached(net_name, "adamw", mechanism)
    train(net, optimizer, 1)
    forget(net)  # a state that hangs on a graph is refused by torch, with or without a mechanism
    other, other_optimizer, other_handle = copy.deepcopy((net, optimizer, handle))
    ahead = train(other, other_optimizer, 2, start=1)
    assert same(train(net, optimizer, 2, start=1), ahead)
    other_handle.detach()
    assert handle.stats()


def test_a_net_that_is_reset_by_snntorch_itself():
    def run(mechanisms, reset):
        torch.manual_seed(1)
        net = sequential()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        if mechanisms:
            bouton.attach(net, optimizer, mechanisms)
        for number in range(3):
            x, y = batch(number)
            reset(net)
            membranes = [membrane for _, membrane in map(net, x)]
            optimizer.zero_grad()
            nn.functional.cross_entropy(sum(membranes), y).backward()
            optimizer.step()
        return net.state_dict()

    mechanisms = [bouton.Grapes(), bouton.MultiSynapse(), bouton.PlasticityDiversity()]
    found = run(mechanisms, utils.reset)
    assert same(found, run(mechanisms, forget))
    assert not same(found, run([], utils.reset))


def test_without_readout_the_loop_of_the_last_layer_is_taken_for_the_readout():
    net, optimizer = build("recurrent-readout")
    groups = {group.path: group.readout for group in bouton.find_groups(net)}
    assert [path for path, readout in groups.items() if readout] == ["lif3.recurrent"]
    handle = bouton.attach(net, optimizer, [bouton.Grapes()], readout=READOUTS["recurrent-readout"])
    assert set(handle.stats()["Grapes"]) == {"fc1.weight", "lif1.recurrent.weight", "fc2.weight"}


def test_one_to_one_loops_are_no_synapse_groups():
    net, _ = build("one-to-one")
    assert net.lif1.V.requires_grad
    assert [group.path for group in bouton.find_groups(net)] == ["fc1", "fc2", "fc3"]
