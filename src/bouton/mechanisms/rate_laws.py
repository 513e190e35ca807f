"""Laws of synaptic learning rates: how rates are drawn, and what they follow afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from bouton.mechanisms.sizes import sizes
from bouton.sites import Synapses

ACTIVE = 0.01  # a node is active where the size of its output is above this


class Settings(Protocol):
    """What a law is told: fields of :class:`bouton.PlasticityDiversity`."""

    @property
    def nu(self) -> float: ...

    @property
    def clip(self) -> tuple[float, float] | None: ...

    @property
    def decay(self) -> float: ...

    @property
    def period(self) -> int: ...


Draw = Callable[[Synapses, float], Tensor]


class Law(NamedTuple):
    """How rates come about.

    ``prepare`` draws the law's state at ``attach``. ``rate`` makes a step's rates, in the shape of the
    weight, and the same ones however often it is called in that step. ``observe`` sees the layer's outputs.
    """

    prepare: Callable[[Synapses, Settings], dict[str, Tensor]]
    rate: Callable[[Synapses, Settings], Tensor]
    observe: Callable[[Synapses, Tensor], None] | None = None


def _clipped(rate: Tensor, settings: Settings) -> Tensor:
    return rate if settings.clip is None else rate.clamp_(*settings.clip)


def _kept(synapses: Synapses, settings: Settings) -> Tensor:
    return synapses.state["rate"]


def _drawn_once(draw: Draw) -> Law:
    """Rates that are drawn once and stay."""

    def prepare(synapses: Synapses, settings: Settings) -> dict[str, Tensor]:
        rate = _clipped(draw(synapses, settings.nu), settings)
        return {"rate": rate.to(synapses.weight.dtype)}

    return Law(prepare, _kept)


CONSTANT = Law(lambda synapses, settings: {"rate": torch.ones_like(synapses.weight)}, _kept)


# Laws that stay as they are drawn: mean 1 and relative spread nu > 0.


def _uniform(synapses: Synapses, nu: float) -> Tensor:
    return synapses.uniform(1 - nu, 1 + nu)


def _normal(synapses: Synapses, nu: float) -> Tensor:
    return 1 + nu * synapses.normal()


def _lognormal(synapses: Synapses, nu: float) -> Tensor:
    return torch.exp(nu * synapses.normal() - nu**2 / 2)  # E[exp(N(m, s))] = exp(m + s^2 / 2)


def _standard_gamma(synapses: Synapses, shape: float) -> Tensor:
    # torch.distributions takes no generator; this is the function that it calls
    alpha = torch.full(synapses.weight.shape, shape, dtype=torch.float32, device=synapses.weight.device)
    return synapses.laid_out(torch._standard_gamma(alpha, generator=synapses.generator()))


def _gamma(synapses: Synapses, nu: float) -> Tensor:
    return _standard_gamma(synapses, nu**-2) * nu**2


def _beta(synapses: Synapses, nu: float) -> Tensor:
    # Beta(a, a) = X / (X + Y) for X, Y ~ Gamma(a), stretched from [0, 1] to [1 - nu, 1 + nu]
    x, y = _standard_gamma(synapses, 1 / nu), _standard_gamma(synapses, 1 / nu)
    return 1 - nu + 2 * nu * x / (x + y)


def _depth(synapses: Synapses, nu: float) -> Tensor:
    return _uniform(synapses, nu * (1 - synapses.depth / 2))


# Laws that follow something: 1 + deviation * factor, where the deviation from 1 is drawn once.


def _deviation(synapses: Synapses, settings: Settings) -> dict[str, Tensor]:
    deviation = synapses.uniform(-settings.nu, settings.nu)
    return {"deviation": deviation.to(synapses.weight.dtype)}


def _follow_weight(synapses: Synapses, settings: Settings) -> Tensor:
    size = sizes(synapses.weight)
    if not size.numel():
        return size
    mean = size.mean().clamp_min(torch.finfo(size.dtype).tiny)  # 0 where all weights are 0
    # in place, and with the sign where it costs no pass of its own: 2 - |w| / mean, bounded
    factor = size.div_(-mean).clamp_(-1.5, -0.5).add_(2)
    return _clipped(factor.mul_(synapses.state["deviation"]).add_(1), settings)


def _deviation_and_activity(synapses: Synapses, settings: Settings) -> dict[str, Tensor]:
    nodes = torch.zeros(len(synapses.weight), dtype=torch.int64, device=synapses.weight.device)
    return {**_deviation(synapses, settings), "active": nodes, "recent": nodes.clone()}


def _count_active(synapses: Synapses, output: Tensor) -> None:
    active = (output.abs() > ACTIVE).unsqueeze(0)  # an output may have the node axis alone
    others = [axis for axis in range(-active.ndim, 0) if axis != synapses.axis]
    synapses.state["recent"].add_(active.sum(others))


def _follow_activity(synapses: Synapses, settings: Settings) -> Tensor:
    deviation, recent = synapses.state["deviation"], synapses.state["recent"]
    synapses.state["active"] = synapses.state["active"] + synapses.total(recent)
    synapses.state["recent"] = torch.zeros_like(recent)  # another tensor: a skipped step takes it back
    active = synapses.state["active"].to(torch.float32)
    share = (active / active.mean()).nan_to_num_(1.0)  # nothing observed yet: all nodes are alike
    # 2 - clip(1 + 0.1 (n - 1), 0.8, 1.2), of which no share can reach the lower bound
    factor = share.mul_(-0.1).add_(1.1).clamp_min_(0.8).to(deviation.dtype)
    factor = factor.reshape(-1, *[1] * (deviation.ndim - 1))
    return _clipped((deviation * factor).add_(1), settings)


def _uniform_and_updates(synapses: Synapses, settings: Settings) -> dict[str, Tensor]:
    # in the precision of the draw, because 16 bits would round every decay away
    rate = _clipped(_uniform(synapses, settings.nu), settings)
    return {"rate": rate, "updates": rate.new_zeros((), dtype=torch.int64)}


def _follow_time(synapses: Synapses, settings: Settings) -> Tensor:
    rate = synapses.state["rate"]
    updates, rest = divmod(synapses.step, settings.period)
    if rest or not updates:
        return rate
    later = (rate - 1).mul_(settings.decay).add_(1)
    if updates % 10 == 0:
        nu = 0.1 * settings.nu
        later += synapses.uniform(-nu, nu)
    # The count tells, without waiting for the device, whether this step's update was made already, as where
    # gradients are scaled batch by batch.
    due = synapses.state["updates"] < updates
    synapses.state["rate"] = torch.where(due, _clipped(later, settings), rate)
    synapses.state["updates"] = torch.full_like(synapses.state["updates"], updates)
    return synapses.state["rate"]


LAWS: dict[str, Law] = {
    "uniform": _drawn_once(_uniform),
    "normal": _drawn_once(_normal),
    "lognormal": _drawn_once(_lognormal),
    "gamma": _drawn_once(_gamma),
    "beta": _drawn_once(_beta),
    "depth": _drawn_once(_depth),
    "weight": Law(_deviation, _follow_weight),
    "temporal": Law(_uniform_and_updates, _follow_time),
    "activity": Law(_deviation_and_activity, _follow_activity, _count_active),
}
