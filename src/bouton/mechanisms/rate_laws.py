"""Laws of synaptic learning rates: how rates are drawn, and what they follow afterwards."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from bouton.mechanisms.sizes import mean_size, over_pieces, passing_abs, passing_sizes
from bouton.native import outputs as native
from bouton.sites import Deviation, RandomStream, Synapses
from bouton.tensors.draws import normal, short_bits
from bouton.tensors.scratch import scratch
from bouton.tensors.shards import is_spread

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

    @property
    def stored(self) -> bool: ...


Draw = Callable[[Synapses, float], Tensor]
Survey = Callable[[Synapses], dict[str, Tensor]]


class Law(NamedTuple):
    """How rates come about.

    ``prepare`` draws the law's state at ``attach``. ``deviation`` makes a step's rates, and the same ones
    however often it is called in that step. ``survey`` and ``observe`` are those of the mechanism, and so
    are ``fixed``, ``blind`` and ``rowwise``. ``seedable``: draws can be repeated, and need not be stored.
    """

    prepare: Callable[[Synapses, Settings], dict[str, Tensor]]
    deviation: Callable[[Synapses, Settings, Mapping[str, Tensor]], Deviation]
    survey: Survey | None = None
    observe: Callable[[Synapses, Tensor], None] | None = None
    fixed: bool = False
    blind: bool = True
    rowwise: bool = True
    seedable: bool = True


CONSTANT = Law(
    lambda *_: {}, lambda synapses, *_: Deviation(synapses.weight.new_zeros(()), 0.0), fixed=True
)


def _keeps_within(settings: Settings, largest: float) -> bool:
    """Whether no deviation up to ``largest``, over nu, leads beyond the bounds."""
    nu, clip = settings.nu, settings.clip
    return clip is None or (clip[0] <= 1 - nu * largest and 1 + nu * largest <= clip[1])


def _clipped(values: Tensor, settings: Settings, largest: float) -> Tensor:
    """Deviations over nu, of which none is beyond ``largest``, so that rates keep within their bounds."""
    if settings.clip is None or _keeps_within(settings, largest):
        return values
    low, high = ((bound - 1) / settings.nu for bound in settings.clip)
    return values.clamp(low, high) if values.is_floating_point() else values.float().clamp_(low, high)


# Laws that stay as they are drawn: of mean 1 and relative spread nu > 0. Each draws (r - 1) / nu. Kept in
# 16 bits that is exact to 2**-12 of nu.


def _drawn_once(draw: Draw, seeded: Draw | None = None) -> Law:
    def prepare(synapses: Synapses, settings: Settings) -> dict[str, Tensor]:
        if not settings.stored:
            return {}
        kept = draw(synapses, settings.nu).to(torch.float16)
        if settings.clip is not None:
            kept.clamp_(*(_towards_0((bound - 1) / settings.nu) for bound in settings.clip))
        return {"deviation": kept}

    def deviation(synapses: Synapses, settings: Settings, known: Mapping[str, Tensor]) -> Deviation:
        if settings.stored:
            return Deviation(synapses.state["deviation"], settings.nu)
        assert seeded is not None
        drawn = seeded(synapses, settings.nu)
        return _whole(drawn, settings, torch.inf if drawn.is_floating_point() else 1.0)

    return Law(prepare, deviation, fixed=True, seedable=seeded is not None)


def _towards_0(bound: float) -> float:
    """The next number towards 0 of those that 16 bits hold, so that rounding leads beyond no bound."""
    mantissa, exponent = math.frexp(min(max(bound, -65504.0), 65504.0))
    return math.ldexp(math.trunc(mantissa * 2**11), exponent - 11)


def _whole(values: Tensor, settings: Settings, largest: float) -> Deviation:
    """A deviation of drawn values, where whole numbers stand for themselves over 2**15."""
    if values.is_floating_point():
        return Deviation(_clipped(values, settings, largest), settings.nu)
    if _clipped(values, settings, largest) is values:
        return Deviation(values, settings.nu / 2**15)
    return Deviation(_clipped(values.float().mul_(2.0**-15), settings, largest), settings.nu)


def repeated(synapses: Synapses) -> RandomStream:
    """The stream of a draw that is repeated in every step."""
    return RandomStream(synapses.stream.seed, synapses.stream.name)


def _seeded_uniform(synapses: Synapses, nu: float) -> Tensor:
    weight, key = synapses.weight, repeated(synapses).key()
    drawn = short_bits(key, weight.numel(), weight.device, synapses.start)
    return synapses.laid_out(drawn.reshape(weight.shape))


def _seeded_normal(synapses: Synapses, nu: float) -> Tensor:
    weight, key = synapses.weight, repeated(synapses).key()
    return synapses.laid_out(normal(key, weight.shape, torch.float32, weight.device, synapses.start))


def _uniform(synapses: Synapses, nu: float) -> Tensor:
    return synapses.uniform(-1, 1)


def _normal(synapses: Synapses, nu: float) -> Tensor:
    return synapses.normal()


def _as_lognormal(drawn: Tensor, nu: float) -> Tensor:
    return drawn.mul_(nu).sub_(nu**2 / 2).expm1_().div_(nu)  # E[exp(N(m, s))] = exp(m + s^2 / 2)


def _standard_gamma(synapses: Synapses, shape: float) -> Tensor:
    # torch.distributions takes no generator; this is the function that it calls
    alpha = torch.full(synapses.weight.shape, shape, dtype=torch.float32, device=synapses.weight.device)
    return synapses.laid_out(torch._standard_gamma(alpha, generator=synapses.generator()))


def _gamma(synapses: Synapses, nu: float) -> Tensor:
    return (_standard_gamma(synapses, nu**-2) * nu**2 - 1) / nu


def _beta(synapses: Synapses, nu: float) -> Tensor:
    # Beta(a, a) = X / (X + Y) for X, Y ~ Gamma(a), stretched from [0, 1] to [-1, 1]
    x, y = _standard_gamma(synapses, 1 / nu), _standard_gamma(synapses, 1 / nu)
    return 2 * x / (x + y) - 1


def depth_factor(synapses: Synapses) -> float:
    """The share of the spread that the ``"depth"`` law leaves a layer."""
    return 1 - synapses.depth / 2


# Laws that follow something: 1 + nu * deviation * factor, where the deviation is drawn once.


def _prepared(synapses: Synapses, settings: Settings) -> dict[str, Tensor]:
    return {"deviation": synapses.uniform(-1, 1).to(torch.float16)} if settings.stored else {}


def _times(synapses: Synapses, settings: Settings, factor: Tensor, largest: float) -> Deviation:
    if settings.stored:
        drawn = synapses.state["deviation"]
    else:
        drawn, factor = _seeded_uniform(synapses, settings.nu), factor.mul_(2.0**-15)
    values = (
        drawn * factor
        if is_spread(drawn)
        else scratch(f"law {type(settings).__qualname__}", drawn, factor.dtype).copy_(drawn).mul_(factor)
    )
    return Deviation(_clipped(values, settings, largest), settings.nu)


def _mean_size(synapses: Synapses) -> dict[str, Tensor]:
    mean = mean_size(synapses.weight)
    return {"mean": mean.clamp_min(torch.finfo(mean.dtype).tiny)}  # 0 where all weights are 0


def _follow_weight(synapses: Synapses, settings: Settings, known: Mapping[str, Tensor]) -> Deviation:
    # in place, and with the sign where it costs no pass of its own: 2 - |w| / mean, bounded
    factor = passing_sizes(synapses.weight).div_(-known["mean"]).clamp_(-1.5, -0.5).add_(2)
    return _times(synapses, settings, factor, 1.5)


def _prepared_to_count(synapses: Synapses, settings: Settings) -> dict[str, Tensor]:
    weight = synapses.weight
    # in float64, which counts exactly to 2**53
    nodes = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
    factor = nodes.new_ones(len(weight), *[1] * (weight.ndim - 1), dtype=torch.float32)
    return {**_prepared(synapses, settings), "active": nodes, "recent": nodes.clone(), "factor": factor}


def _count_active(synapses: Synapses, output: Tensor) -> None:
    if native.count_beyond(output, synapses.axis, ACTIVE, synapses.state["recent"]):
        return
    output = output.unsqueeze(0) if output.ndim == -synapses.axis else output  # nodes come first there
    others = [axis for axis in range(-output.ndim, 0) if axis != synapses.axis]
    for count in over_pieces(lambda part: _is_active(part).sum(others), output):
        synapses.state["recent"].add_(count)


def _is_active(output: Tensor) -> Tensor:
    # as numbers and not as a mask, over which sums are slow
    return passing_abs("size", output).gt_(ACTIVE)


def _activity(synapses: Synapses) -> dict[str, Tensor]:
    state = synapses.state
    active, recent, factor = state["active"], state["recent"], state["factor"]
    since = synapses.total(recent)
    if not native.activity(active, since, factor):
        active += since
        share = (active / active.mean()).nan_to_num_(1.0)  # nothing observed yet: all nodes are alike
        # 2 - clip(1 + 0.1 (n - 1), 0.8, 1.2), of which no share can reach the lower bound
        factor.copy_(share.mul_(-0.1).add_(1.1).clamp_min_(0.8).view_as(factor))
    recent.zero_()
    return {"factor": factor}


def _follow_activity(synapses: Synapses, settings: Settings, known: Mapping[str, Tensor]) -> Deviation:
    if settings.stored and _keeps_within(settings, 1.2):
        return Deviation(synapses.state["deviation"], settings.nu, known["factor"])
    return _times(synapses, settings, known["factor"].clone(), 1.2)


def _prepared_for_time(synapses: Synapses, settings: Settings) -> dict[str, Tensor]:
    # in the precision of the draw, because 16 bits would round every decay away
    rate = _clipped(_uniform(synapses, settings.nu), settings, 1.0)
    return {"deviation": rate, "updates": rate.new_zeros((), dtype=torch.int64)}


def _follow_time(synapses: Synapses, settings: Settings, known: Mapping[str, Tensor]) -> Deviation:
    state = synapses.state
    updates, rest = divmod(synapses.step, settings.period)
    if not rest and updates:
        later = state["deviation"] * settings.decay
        if updates % 10 == 0:
            later += synapses.uniform(-0.1, 0.1)
        # The count tells, without waiting for the device, whether this step's update was made already, as
        # where gradients are scaled batch by batch.
        due = state["updates"] < updates
        state["deviation"] = torch.where(due, _clipped(later, settings, torch.inf), state["deviation"])
        state["updates"] = torch.full_like(state["updates"], updates)
    return Deviation(state["deviation"], settings.nu)


LAWS: dict[str, Law] = {
    "uniform": _drawn_once(_uniform, _seeded_uniform),
    "normal": _drawn_once(_normal, _seeded_normal),
    "lognormal": _drawn_once(
        lambda synapses, nu: _as_lognormal(_normal(synapses, nu), nu),
        lambda synapses, nu: _as_lognormal(_seeded_normal(synapses, nu), nu),
    ),
    "gamma": _drawn_once(_gamma),
    "beta": _drawn_once(_beta),
    "depth": _drawn_once(
        lambda synapses, nu: _uniform(synapses, nu) * depth_factor(synapses),
        lambda synapses, nu: _seeded_uniform(synapses, nu).float().mul_(2.0**-15 * depth_factor(synapses)),
    ),
    "weight": Law(_prepared, _follow_weight, _mean_size, blind=False),
    "temporal": Law(_prepared_for_time, _follow_time, rowwise=False, seedable=False),
    "activity": Law(_prepared_to_count, _follow_activity, _activity, _count_active),
}
