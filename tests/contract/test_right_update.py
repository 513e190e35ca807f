"""Promise 6: the rate site satisfies dw = r * dw_plain for every optimizer that takes dense gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from subjects import EXAMPLES
from torch import nn

import bouton
from bouton.sites import RandomStream, Synapses
from bouton.synapse import find_groups

RATES = {n: m for n, m in EXAMPLES.items() if m.site == "rate" and m.scope == "update"}
OPTIMIZERS = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
}
del OPTIMIZERS["Optimizer"], OPTIMIZERS["SparseAdam"]  # the base, and the one for sparse gradients only


def updates(make, kind, mechanism, seed):
    """Weights before and after one step, the groups they belong to, and what their layers gave out."""
    torch.manual_seed(seed)
    model, x = make()
    # Muon takes matrices only, and weights are what rates act on
    groups = find_groups(model)
    weights = [group.weight for group in groups]
    outputs = [[] for _ in groups]
    for group, seen in zip(groups, outputs, strict=True):
        group.layers[0].register_forward_hook(lambda *call, seen=seen: seen.append(call[-1].detach()))
    optimizer = kind(weights, lr=0.1)
    if mechanism:
        bouton.attach(model, optimizer, [mechanism], seed=seed)
    before = [weight.detach().clone() for weight in weights]

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return before, [weight.detach() for weight in weights], groups, outputs


def check(make, kind, mechanism, seed):
    before, plain, _, _ = updates(make, kind, None, seed)
    _, *rest = updates(make, kind, mechanism, seed)
    for old, new, scaled, group, outputs in zip(before, plain, *rest, strict=True):
        rate = torch.ones_like(old)
        if mechanism.serves(group) is None:
            stream = RandomStream(seed, f"{type(mechanism).__name__}/{group.name}")
            gradient = group.layout.nodes(group.weight.grad)
            axis, depth = group.layout.output_axis, group.depth
            synapses = Synapses(group.layout.nodes(old), gradient, axis=axis, stream=stream, depth=depth)
            synapses.state.update(mechanism.prepare(synapses))
            for output in outputs:
                mechanism.observe(synapses, output)
            rate = mechanism.rule(synapses)
            rate = rate.reshape(-1, *[1] * (old.ndim - 1)) if rate.ndim == 1 else rate
            rate = group.layout.nodes(rate.expand(synapses.weight.shape))
        assert (new - old).abs().max() > 0
        torch.testing.assert_close(scaled - old, rate * (new - old), rtol=1e-9, atol=1e-12)


def dense(inputs, hidden, batch):
    def make():
        model = nn.Sequential(
            nn.Linear(inputs, hidden, bias=False), nn.Tanh(), nn.Linear(hidden, 2, bias=False)
        )
        return model.double(), torch.randn(batch, inputs, dtype=torch.float64)

    return make


def convolved(kind, groups, kernel, batch):
    def make():
        channels = 2 * groups
        model = nn.Sequential(
            kind(channels, channels, kernel, groups=groups), nn.Tanh(), nn.Conv1d(channels, 2, 1)
        )
        return model.double(), torch.randn(batch, channels, 5, dtype=torch.float64)

    return make


@pytest.mark.parametrize("mechanism", RATES.values(), ids=RATES)
@pytest.mark.parametrize("kind", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_every_optimizer(kind, mechanism):
    check(dense(7, 5, 4), kind, mechanism, seed=0)


@pytest.mark.parametrize("mechanism", RATES.values(), ids=RATES)
@given(inputs=st.integers(1, 6), hidden=st.integers(1, 6), batch=st.integers(1, 4), seed=st.integers(0, 9))
@settings(max_examples=15)
def test_every_shape_of_dense_layers(mechanism, inputs, hidden, batch, seed):
    check(dense(inputs, hidden, batch), torch.optim.SGD, mechanism, seed)


@pytest.mark.parametrize("mechanism", RATES.values(), ids=RATES)
@given(
    kind=st.sampled_from([nn.Conv1d, nn.ConvTranspose1d]),
    groups=st.integers(1, 3),
    kernel=st.integers(1, 3),
    batch=st.integers(1, 3),
)
@settings(max_examples=15)
def test_every_shape_of_convolutions(mechanism, kind, groups, kernel, batch):
    check(convolved(kind, groups, kernel, batch), torch.optim.AdamW, mechanism, seed=1)
