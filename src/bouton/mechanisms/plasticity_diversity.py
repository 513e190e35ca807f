"""Diversity in synaptic plasticity: every synapse has its own learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bouton.fused.rates import SeededRates
from bouton.mechanism import Mechanism, checked_clip, register
from bouton.mechanisms.rate_laws import CONSTANT, LAWS, Law, depth_factor, repeated
from bouton.sites import Deviation, Synapses
from bouton.synapse import SynapseGroup
from bouton.tensors.precision import wide
from bouton.tensors.processes import process_count

_COUNTED_APART = (
    "each process counts the activity in its own batches, and gradients are scaled before the processes "
    "meet, so that their rates would differ; use scope='update'"
)


@register(
    paper="Synaptic diversity (Nat. Commun. 16, 2025)",
    neutral=(
        *({"nu": 0.0, "distribution": name} for name in LAWS),
        {"nu": 0.0, "scope": "gradient"},
        {"nu": 0.0, "stored": False},
    ),
    examples=(
        # a short period, so that short runs see rates change
        *({"distribution": name, "decay": 0.5, "period": 2} for name in LAWS),
        {"scope": "gradient"},
        {"stored": False},
        {"stored": False, "distribution": "weight"},
    ),
)
@dataclass(frozen=True, kw_only=True)
class PlasticityDiversity(Mechanism):
    r"""Give every synapse its own learning rate.

    .. math:: w \leftarrow w + r \odot \Delta w_{\text{plain}}, \qquad r \sim U[1 - \nu, 1 + \nu]

    The rates ``r`` have the shape of the weight, no unit, and mean 1 (before ``clip``). In four of the laws
    below they follow something, ``u ~ U[-1, 1]`` being drawn once per synapse:

    .. math:: r = 1 + \nu u \, (1 - \text{depth} / 2), \qquad
       r = 1 + \nu u \, \mathrm{clip}(2 - |w| / \overline{|w|},\, 0.5,\, 1.5), \qquad
       r = 1 + \nu u \, (2 - \mathrm{clip}(1 + 0.1 (n - 1),\, 0.8,\, 1.2))

    Args:
        nu: relative spread of the rates, 0 or 1e-6 to 1.
        distribution: the law of ``r``. Drawn once: ``"uniform"`` on [1-nu, 1+nu] (the paper's),
            ``"normal"`` N(1, nu), ``"lognormal"`` with mean 1 and sigma = nu, ``"gamma"`` with mean 1 and
            standard deviation nu, ``"beta"`` on [1-nu, 1+nu] with alpha = beta = 1/nu. ``"depth"``: the
            full spread in the first layer, half of it in the last. ``"weight"``: less spread the larger
            the weight is at present (one that is infinite or not a number counts as 0). ``"activity"``:
            less spread the more often the node was active, where ``n`` is the count of its outputs beyond
            0.01 in size, over the layer's mean count, in all forward passes in training mode since
            ``attach``. ``"temporal"``: uniform at first; then every ``period`` steps ``r - 1`` is
            multiplied by ``decay``, and every ten periods 0.1 U[-nu, nu] is added to it.
        scope: ``"update"`` scales what the optimizer applies, right for every optimizer;
            ``"gradient"`` scales what the optimizer sees, as the published code does.
        clip: bounds of ``r``, or None.
        decay: share of ``r - 1`` that a period leaves under the ``"temporal"`` law, 0 to 1.
        period: optimizer steps from one decay to the next under the ``"temporal"`` law.
        stored: keep what is drawn, in 2 bytes for each synapse (4 under the ``"temporal"`` law). False
            keeps nothing and makes the same draws again in every step: no memory for some more time.
            They are the same on every device and in every process, of 2**16 values and to the bit under
            ``"uniform"``, ``"depth"``, ``"weight"`` and ``"activity"``; ``"gamma"``, ``"beta"`` and
            ``"temporal"`` cannot be made again.
        where: see :class:`bouton.Mechanism`.

    Raises:
        ValueError: ``nu`` is neither 0 nor in [1e-6, 1], an unknown distribution or scope, or bounds
            that are not ``0 <= low <= high > 0``, a ``decay`` outside [0, 1], a ``period`` below 1. While
            training: ``"activity"`` under ``torch.func``'s transforms; ``scope="gradient"`` where another
            tensor that takes a gradient stands in for the parameter, as by ``torch.func.functional_call``.

    Note:
        When not to use it: ``scope="gradient"`` under an optimizer that divides by the gradient's size. It
        cancels there (measured on the published code): at nu = 0.49 the learned update changes by 0.31
        under SGD, but by 7e-6 under Adam and AdamW, 2e-4 under RMSprop, 4e-7 under Adagrad. The mean rate
        is 1, so that a gain is not a larger learning rate in disguise; ``clip`` moves the mean where it
        cuts one tail more than the other, for ``"uniform"`` from nu = 0.5 (mean 1.06 at nu = 1), for the
        laws with long tails earlier.

        ``"activity"`` counts the layer's raw outputs, which are rarely as near to 0 as 0.01 unless its
        inputs are sparse: in a 64-256-256-10 ReLU net on the scikit-learn digits the last factor above
        stayed within 0.99 to 1.02 for every node, and the law is then hardly more than ``"uniform"``.
        Each of several processes counts in its own batches, and at the optimizer's step all counts of the
        default group of ``torch.distributed`` are summed: every process of it must make that step.

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
    decay: float = 0.9995
    period: int = 100
    stored: bool = True

    site = "rate"
    in_parts = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.nu, int | float) or not (self.nu == 0 or 1e-6 <= self.nu <= 1):
            raise ValueError(f"PlasticityDiversity(nu={self.nu!r}): use 0, or a spread from 1e-6 to 1")
        if self.distribution not in LAWS:
            raise ValueError(
                f"PlasticityDiversity(distribution={self.distribution!r}): use one of {', '.join(LAWS)}"
            )
        if self.scope not in ("update", "gradient"):
            raise ValueError(f"PlasticityDiversity(scope={self.scope!r}): use 'update' or 'gradient'")
        object.__setattr__(self, "clip", checked_clip("PlasticityDiversity", self.clip))
        if not isinstance(self.decay, int | float) or not 0 <= self.decay <= 1:
            raise ValueError(f"PlasticityDiversity(decay={self.decay!r}): use a number from 0 to 1")
        if type(self.period) is not int or self.period < 1:
            raise ValueError(
                f"PlasticityDiversity(period={self.period!r}): use a whole number of optimizer steps from 1"
            )

        if not isinstance(self.stored, bool):
            raise ValueError(f"PlasticityDiversity(stored={self.stored!r}): use True or False")
        if not self.stored and not self.law.seedable:
            able = ", ".join(name for name, law in LAWS.items() if law.seedable)
            raise ValueError(
                f"PlasticityDiversity(stored=False) cannot repeat the draws of {self.distribution!r}; use "
                f"stored=True, or one of: {able}"
            )

    def serves(self, group: SynapseGroup) -> str | None:
        if self.observes and self.scope == "gradient" and process_count() > 1:
            return _COUNTED_APART
        resolution = torch.finfo(group.weight.dtype).eps
        if 0 < self.nu < resolution:
            return f"nu={self.nu} is below the resolution of {group.weight.dtype}, {resolution:.1g}"
        return None

    @property
    def law(self) -> Law:
        """How the rates come about."""
        return LAWS[self.distribution] if self.nu else CONSTANT

    @property
    def observes(self) -> bool:  # type: ignore[override]
        return self.law.observe is not None

    @property
    def blind(self) -> bool:  # type: ignore[override]
        return self.law.blind

    @property
    def fixed(self) -> bool:  # type: ignore[override]
        return self.stored and self.law.fixed

    @property
    def rowwise(self) -> bool:  # type: ignore[override]
        return self.law.rowwise

    def prepare(self, synapses: Synapses) -> dict[str, Tensor]:
        return self.law.prepare(synapses, self)

    def observe(self, synapses: Synapses, output: Tensor) -> None:
        observe = LAWS[self.distribution].observe  # that of the law, where it has one
        if observe is not None:
            observe(synapses, output)

    def survey(self, synapses: Synapses) -> dict[str, Tensor]:
        if self.scope == "gradient" and self.observes and process_count() > 1:  # started since attach
            raise ValueError(f"PlasticityDiversity(distribution={self.distribution!r}): {_COUNTED_APART}")
        survey = self.law.survey
        return survey(synapses) if survey else {}

    def deviation(self, synapses: Synapses) -> Deviation:
        return self.law.deviation(synapses, self, self.surveyed(synapses))

    def seeded(self, synapses: Synapses) -> SeededRates | None:
        if self.stored or self.nu == 0 or self.distribution not in ("uniform", "depth"):
            return None
        nu = self.nu * (depth_factor(synapses) if self.distribution == "depth" else 1.0)
        return SeededRates(repeated(synapses).key(), nu, self.clip, synapses.start)

    def rule(self, synapses: Synapses) -> Tensor:
        values, scale, nodes, *_ = self.deviation(synapses)
        values = values if nodes is None else values * nodes
        # in one operation, in the wider of both types; a number without axes would not count for that
        one = torch.ones(1, dtype=wide(synapses.weight.dtype), device=values.device)
        return torch.add(one, values, alpha=scale).expand(synapses.weight.shape)
