"""Feedback alignment in spiking nets, where each layer runs once per time step."""

import pytest
import torch
from spiking_nets import NETS, READOUTS, batch, build, loss_of
from torch import nn

import bouton


class Feedback(torch.autograd.Function):
    """A linear layer whose error goes down through other weights than its own."""

    @staticmethod
    def forward(ctx, x, weight, bias, feedback):
        ctx.save_for_backward(x, feedback)
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, error):
        x, feedback = ctx.saved_tensors
        return error @ feedback, error.T @ x, error.sum(0), None


def draw(net, shape_of):
    """Feedback weights for each layer, by path."""
    return {
        path: torch.randn(shape_of(module))
        for path, module in net.named_modules()
        if isinstance(module, nn.Linear)
    }


@pytest.mark.parametrize("net_name", [name for name in NETS if name != "convolutional"])
def test_errors_go_down_through_fixed_weights_at_each_time_step(net_name):
    net, _ = build(net_name)
    by_hand, _ = build(net_name)
    feedback = draw(net, lambda linear: linear.weight.shape)
    for path, matrix in feedback.items():
        linear = by_hand.get_submodule(path)
        linear.forward = lambda x, linear=linear, matrix=matrix: Feedback.apply(
            x, linear.weight, linear.bias, matrix
        )
    mechanism = bouton.FeedbackAlignment(init=feedback)
    bouton.attach(net, None, [mechanism], readout=READOUTS.get(net_name))
    loss_of(net, 0).backward()
    loss_of(by_hand, 0).backward()
    for ours, expected in zip(net.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad)


def test_direct_feedback_is_that_of_the_same_time_step():
    net, _ = build("leaky")
    by_hand, _ = build("leaky")
    feedback = draw(net, lambda linear: (net.fc3.out_features, linear.in_features))
    bouton.attach(net, None, [bouton.FeedbackAlignment(kind="dfa", init=feedback)])
    loss_of(net, 0).backward()

    currents = []
    hook = by_hand.fc3.register_forward_hook(lambda *call: currents.append(call[-1]))
    errors = torch.autograd.grad(loss_of(by_hand, 0), currents)
    hook.remove()
    signal = list(batch(0)[0])
    for linear, neuron, above in (("fc1", "lif1", "fc2"), ("fc2", "lif2", "fc3")):
        neuron, spikes = by_hand.get_submodule(neuron), []
        membrane = neuron.reset_mem()
        for now in signal:
            spike, membrane = neuron(by_hand.get_submodule(linear)(now.detach()), membrane)
            spikes.append(spike)
        sent = [error @ feedback[above] for error in errors]
        torch.autograd.backward(spikes, sent)
        signal = spikes
    for name in ("fc1", "fc2"):
        torch.testing.assert_close(getattr(net, name).weight.grad, getattr(by_hand, name).weight.grad)
