"""What rates and structure must do to packed weights, block by block, from the slow rules of oracles.py."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import oracles
import torch
from torch import Tensor, nn

import bouton
from bouton.sites import RandomStream, Synapses

SEED = 3
RATES = {
    "local": bouton.Grapes(mode="local"),
    "local, free": bouton.Grapes(mode="local", clip=None, normalize=True),
    "diversity": bouton.PlasticityDiversity(nu=0.4),
    "crystallization": bouton.Crystallization(threshold=0.05, factor=0.5),
    "volume": bouton.VolumePlasticity(spread=0.0),
}
# name of a weight -> number of blocks along its nodes, and the name of the other weight of these nodes
Blocks = Mapping[str, tuple[int, str | None]]
Loss = Callable[[nn.Module], Tensor]


def check_updates(
    model: nn.Module, loss: Loss, mechanism: bouton.Mechanism, blocks: Blocks, steps: int = 3
) -> None:
    """Over some steps, every weight's update is the plain one times the rate of the oracle.

    Weights that ``blocks`` does not name are one block, with nothing beside them.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    handle = bouton.attach(model, optimizer, [mechanism], seed=SEED)
    taken = [row.weight for row in handle.report().rows if row.left_because is None]
    assert set(blocks) <= set(taken)
    streams = {name: RandomStream(SEED, f"{type(mechanism).__name__}/{name}") for name in taken}
    rates: dict[tuple[str, int], Tensor] = {}  # of the step before
    weights = {model.get_parameter(name) for name in taken}
    others = [name for name, parameter in model.named_parameters() if parameter not in weights]
    for _ in range(steps):
        plain, plain_optimizer = copy.deepcopy((model, optimizer))
        before = {name: model.get_parameter(name).detach().clone() for name in [*taken, *others]}
        for net, stepper in ((plain, plain_optimizer), (model, optimizer)):
            stepper.zero_grad()
            loss(net).backward()
            stepper.step()
        for name, old in before.items():
            parameter = model.get_parameter(name)
            rate = torch.ones_like(parameter)
            if name in taken:
                count, beside = blocks.get(name, (1, None))
                size = len(parameter) // count
                for block in range(count):
                    rows = slice(block * size, (block + 1) * size)
                    weight, gradient = old[rows], parameter.grad[rows]
                    companion = before[beside][rows] if beside else None
                    last, start = rates.get((name, block)), block * weight.numel()
                    rates[name, block] = rate[rows] = rate_by_hand(
                        mechanism, weight, gradient, companion, streams[name], last, start
                    )
            update = plain.get_parameter(name).detach() - old
            torch.testing.assert_close(parameter.detach(), old + rate * update, rtol=0, atol=1e-13)


def rate_by_hand(
    mechanism: bouton.Mechanism,
    weight: Tensor,
    gradient: Tensor,
    companion: Tensor | None,
    stream: RandomStream,
    last: Tensor | None,
    start: int = 0,
) -> Tensor:
    """The rates of one block, ``last`` being those of the step before.

    ``start`` is the place of its first synapse in the whole weight.
    """
    if isinstance(mechanism, bouton.Grapes):
        synapses = weight if companion is None else torch.cat([weight.flatten(1), companion.flatten(1)], 1)
        factor = oracles.responsibility(synapses, mechanism.clip, mechanism.normalize)
        return weight.new_tensor(factor).reshape(-1, *[1] * (weight.ndim - 1)).expand_as(weight)
    if isinstance(mechanism, bouton.PlasticityDiversity):
        if last is not None:
            return last
        drawn = Synapses(weight, stream=stream, start=start).uniform(-1, 1)
        return oracles.rates_of({"deviation": drawn.half()}, mechanism.nu, weight.dtype)
    if isinstance(mechanism, bouton.VolumePlasticity):
        rate = oracles.volume_rate(weight, mechanism.stability)
        return rate / rate.mean()
    settled = oracles.crystallizing(weight, gradient, mechanism.threshold)
    last = torch.ones_like(weight) if last is None else last
    return torch.where(settled, mechanism.factor * last, last)


def remodeled_by_hand(model: nn.Module, loss: Loss, blocks: Blocks, where: str | None = None) -> None:
    """One remodeling event takes w_max and the fan-in of each block, and draws block by block."""
    for redraw in ("init", "published"):
        net = copy.deepcopy(model)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        mechanism = bouton.SpineRemodeling(every=1, d_re=2.0, redraw=redraw, where=where)
        bouton.attach(net, optimizer, [mechanism], seed=SEED)
        loss(net).backward()
        optimizer.step()
        for name, (count, _) in blocks.items():
            stream = RandomStream(SEED, f"SpineRemodeling/{name}")
            expected = []
            for block, weight in enumerate(model.get_parameter(name).detach().chunk(count)):
                own = Synapses(weight, stream=stream, start=block * weight.numel())
                drawn = own.uniform(2**-24, 1 + 2**-24)
                expected.append(oracles.remodeled(weight, drawn, 2.0, redraw == "published"))
            found = net.get_parameter(name).detach()
            torch.testing.assert_close(found, torch.cat(expected), rtol=1e-12, atol=1e-13)
            assert not torch.equal(found, model.get_parameter(name))
