"""Diversity in synaptic plasticity: every synapse has its own learning rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bouton.mechanism import Mechanism, Synapses, checked_clip, register
from bouton.synapse import SynapseGroup

# Each law draws rates with mean 1 and relative spread nu > 0 in the shape of the weight.
Law = Callable[[Synapses, float], Tensor]


def _uniform(synapses: Synapses, nu: float) -> Tensor:
    return synapses.uniform(1 - nu, 1 + nu)


def _normal(synapses: Synapses, nu: float) -> Tensor:
    return 1 + nu * synapses.normal()


def _lognormal(synapses: Synapses, nu: float) -> Tensor:
    return torch.exp(nu * synapses.normal() - nu**2 / 2)  # E[exp(N(m, s))] = exp(m + s^2 / 2)


def _standard_gamma(synapses: Synapses, shape: float) -> Tensor:
    # torch.distributions takes no generator; this is the function that it calls
    alpha = torch.full_like(synapses.weight, shape, dtype=torch.float32)
    return torch._standard_gamma(alpha, generator=synapses.generator())


def _gamma(synapses: Synapses, nu: float) -> Tensor:
    return _standard_gamma(synapses, nu**-2) * nu**2


def _beta(synapses: Synapses, nu: float) -> Tensor:
    # Beta(a, a) = X / (X + Y) for X, Y ~ Gamma(a), stretched from [0, 1] to [1 - nu, 1 + nu]
    x, y = _standard_gamma(synapses, 1 / nu), _standard_gamma(synapses, 1 / nu)
    return 1 - nu + 2 * nu * x / (x + y)


DISTRIBUTIONS: dict[str, Law] = {
    "uniform": _uniform,
    "normal": _normal,
    "lognormal": _lognormal,
    "gamma": _gamma,
    "beta": _beta,
}


@register(
    paper="Synaptic diversity (Nat. Commun. 16, 2025)",
    neutral=(
        *({"nu": 0.0, "distribution": name} for name in DISTRIBUTIONS),
        {"nu": 0.0, "scope": "gradient"},
    ),
    examples=(*({"distribution": name} for name in DISTRIBUTIONS), {"scope": "gradient"}),
)
@dataclass(frozen=True, kw_only=True)
class PlasticityDiversity(Mechanism):
    r"""Give every synapse its own learning rate, drawn once.

    .. math:: w \leftarrow w + r \odot \Delta w_{\text{plain}}, \qquad r \sim U[1 - \nu, 1 + \nu]

    The rates ``r`` have the shape of the weight, no unit, and mean 1 (before ``clip``).

    Args:
        nu: relative spread of the rates, 0 or 1e-6 to 1.
        distribution: the law of ``r``: ``"uniform"`` on [1-nu, 1+nu] (the paper's), ``"normal"``
            N(1, nu), ``"lognormal"`` with mean 1 and sigma = nu, ``"gamma"`` with mean 1 and standard
            deviation nu, ``"beta"`` on [1-nu, 1+nu] with alpha = beta = 1/nu.
        scope: ``"update"`` scales what the optimizer applies, right for every optimizer;
            ``"gradient"`` scales what the optimizer sees, as the published code does.
        clip: bounds of ``r``, or None.
        where: see :class:`bouton.Mechanism`.

    Raises:
        ValueError: ``nu`` is neither 0 nor in [1e-6, 1], an unknown distribution or scope, or bounds
            that are not ``0 <= low <= high > 0``.

    Note:
        When not to use it: ``scope="gradient"`` under an optimizer that divides by the gradient's size. It
        cancels there (measured on the published code): at nu = 0.49 the learned update changes by 0.31
        under SGD, but by 7e-6 under Adam and AdamW, 2e-4 under RMSprop, 4e-7 under Adagrad. The mean rate
        is 1, so that a gain is not a larger learning rate in disguise; ``clip`` moves the mean where it
        cuts one tail more than the other, for ``"uniform"`` from nu = 0.5 (mean 1.06 at nu = 1), for the
        laws with long tails earlier.

    References:
        Hofmann et al., Nature Communications 16, 5112 (2025), doi 10.1038/s41467-025-60078-9.

    Example:
        >>> import bouton, torch
        >>> model = torch.nn.Linear(8, 4)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> handle = bouton.attach(model, optimizer, [bouton.PlasticityDiversity(nu=0.16)], seed=1)
        >>> 0.84 <= handle.stats()["PlasticityDiversity"]["weight"]["min"]
        True
    """

    nu: float = 0.16
    distribution: str = "uniform"
    scope: Literal["update", "gradient"] = "update"
    clip: tuple[float, float] | None = (0.5, 2.0)

    site = "rate"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.nu, int | float) or not (self.nu == 0 or 1e-6 <= self.nu <= 1):
            raise ValueError(f"PlasticityDiversity(nu={self.nu!r}): use 0, or a spread from 1e-6 to 1")
        if self.distribution not in DISTRIBUTIONS:
            raise ValueError(
                f"PlasticityDiversity(distribution={self.distribution!r}): use one of "
                f"{', '.join(DISTRIBUTIONS)}"
            )
        if self.scope not in ("update", "gradient"):
            raise ValueError(f"PlasticityDiversity(scope={self.scope!r}): use 'update' or 'gradient'")
        object.__setattr__(self, "clip", checked_clip("PlasticityDiversity", self.clip))

    def serves(self, group: SynapseGroup) -> str | None:
        resolution = torch.finfo(group.weight.dtype).eps
        if 0 < self.nu < resolution:
            return f"nu={self.nu} is below the resolution of {group.weight.dtype}, {resolution:.1g}"
        return None

    def prepare(self, synapses: Synapses) -> dict[str, Tensor]:
        if self.nu == 0:
            return {"rate": torch.ones_like(synapses.weight)}
        rate = DISTRIBUTIONS[self.distribution](synapses, self.nu)
        if self.clip is not None:
            rate = rate.clamp(*self.clip)
        return {"rate": rate.to(synapses.weight.dtype)}

    def rule(self, synapses: Synapses) -> Tensor:
        return synapses.state["rate"]
