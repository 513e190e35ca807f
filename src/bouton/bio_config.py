"""Read the configuration of `pytorch_bio_transformations`, the diversity paper's published code."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, Protocol

from torch import nn

from bouton.mechanism import Mechanism
from bouton.mechanisms import (
    Crystallization,
    DalePrinciple,
    MultiSynapse,
    PlasticityDiversity,
    SpineRemodeling,
    VolumePlasticity,
)
from bouton.mechanisms.multi_synapse import ACTIVATIONS

# All keys with their defaults; the first ten are those of version 0.0.1.
_FIRST: dict[str, Any] = {
    "weight_splitting_activation_function": nn.Identity(),
    "fuzzy_learning_rate_factor_nu": 0.16,
    "dampening_factor": 0.6,
    "crystal_thresh": 4.5e-5,
    "rejuvenation_parameter_dre": 8.0,
    "weight_splitting_Gamma": 0,
    "apply_dales_principle": False,
    "base_lr": 0.1,
    "stability_factor": 2.0,
    "lr_variability": 0.2,
}
_LATER: dict[str, Any] = {
    "fuzzy_lr_distribution": "uniform",
    "fuzzy_lr_min": 0.5,
    "fuzzy_lr_max": 2.0,
    "fuzzy_lr_dynamic": False,
    "fuzzy_lr_decay": 0.9995,
    "fuzzy_lr_update_freq": 100,
    "fuzzy_lr_layer_index": -1,  # these two are set by the package itself; attach finds depths on its own
    "fuzzy_lr_total_layers": -1,
}
_KEYS = _FIRST | _LATER

# What each law is called here; None where all rates are 1.
_LAWS: dict[str, str | None] = {
    "baseline": None,
    **{name: name for name in ("uniform", "normal", "lognormal", "gamma", "beta")},
    "layer_adaptive": "depth",
    "weight_adaptive": "weight",
    "temporal": "temporal",
    "activity": "activity",
}
_STILL = {"temporal": "uniform", "activity": None}  # how these start, and stay without fuzzy_lr_dynamic

_CALLS = (
    "fuzzy_learning_rates",
    "update_fuzzy_learning_rates",
    "crystallize",
    "volume_dependent_lr",
    "rejuvenate_weights",
    "enforce_dales_principle",
)

_MODULES = {
    repr(module): name
    for name, module in {
        "identity": nn.Identity(),
        "relu": nn.ReLU(),
        "tanh": nn.Tanh(),
        "sigmoid": nn.Sigmoid(),
        "gelu": nn.GELU(),
        "silu": nn.SiLU(),
    }.items()
}


class NamedConfig(Protocol):
    """A named tuple, such as the package's ``BioConfig``."""

    def _asdict(self) -> dict[str, Any]: ...


def from_bio_config(
    config: Mapping[str, Any] | NamedConfig,
    calls: str | Sequence[str] = ("fuzzy_learning_rates",),
    *,
    rejuvenate_every: int | None = None,
    scope: Literal["update", "gradient"] = "update",
) -> list[Mechanism]:
    """Turn a configuration of `pytorch_bio_transformations` into mechanisms for :func:`bouton.attach`.

    The package itself is not needed. In it, splitting and Dale's signs come with the conversion of a
    model, and all else with methods that the training loop calls: say in ``calls`` which ones yours did.
    What you get is what the configuration asks for, also where the package does not deliver it; the page
    "Coming from pytorch_bio_transformations" of the documentation lists all differences.

    Args:
        config: a ``BioConfig`` (any named tuple) or a mapping with its keys, of version 0.0.1 or 0.0.5.
            Missing keys have the defaults of 0.0.5. Exactly the ten keys of 0.0.1 make a configuration of
            that version, which does not bound the rates.
        calls: methods of the converted model that the training loop called; by default
            ``fuzzy_learning_rates`` alone.
        rejuvenate_every: optimizer steps from one call of ``rejuvenate_weights`` to the next, such as
            ``len(loader)`` for one in each epoch.
        scope: where the learning rates of synapses act, see :class:`bouton.PlasticityDiversity`. The
            package scales gradients, which Adam and its kin cancel; ``"gradient"`` does the same.

    Raises:
        ValueError: an unknown key, value or call, or calls that do not go with the rest.

    Example:
        >>> from_bio_config({"fuzzy_lr_distribution": "layer_adaptive"}) == [
        ...     PlasticityDiversity(distribution="depth")
        ... ]
        True
    """
    given = _as_mapping(config)
    if unknown := [key for key in given if key not in _KEYS]:
        raise ValueError(f"config has unknown keys {unknown}; BioConfig's are: {', '.join(_KEYS)}")
    values = _KEYS | given
    if given.keys() == _FIRST.keys():
        values |= {"fuzzy_lr_min": None}
    made = _checked_calls(calls)
    if rejuvenate_every is not None and "rejuvenate_weights" not in made:
        raise ValueError("rejuvenate_every= goes with 'rejuvenate_weights' in calls=, which is not there")
    found = [
        _splitting(values),
        _diversity(values, scope) if "fuzzy_learning_rates" in made else None,
        _crystallization(values) if "crystallize" in made else None,
        _volume(values) if "volume_dependent_lr" in made else None,
        _remodeling(values, rejuvenate_every) if "rejuvenate_weights" in made else None,
        _dale(values, made),
    ]
    return [mechanism for mechanism in found if mechanism is not None]


def _as_mapping(config: Mapping[str, Any] | NamedConfig) -> dict[str, Any]:
    if isinstance(config, Mapping):
        return dict(config)
    if not hasattr(config, "_asdict"):
        raise ValueError(
            f"config is of type {type(config).__name__}; pass a BioConfig, or a mapping of its keys"
        )
    return config._asdict()


def _checked_calls(calls: str | Sequence[str]) -> list[str]:
    made = [calls] if isinstance(calls, str) else list(calls)
    if unknown := [call for call in made if call not in _CALLS]:
        raise ValueError(f"calls={unknown} have no counterpart; use some of: {', '.join(_CALLS)}")
    return made


def _flag(values: Mapping[str, Any], key: str) -> bool:
    if not isinstance(values[key], bool):
        raise ValueError(f"config has {key}={values[key]!r}; use True or False")
    return bool(values[key])


def _splitting(values: Mapping[str, Any]) -> MultiSynapse | None:
    gamma = values["weight_splitting_Gamma"]
    if gamma in (0, 1):
        return None
    phi = values["weight_splitting_activation_function"]
    functions = (name for name, function in ACTIVATIONS.items() if function is phi)
    name = next(functions, _MODULES.get(repr(phi)))
    return MultiSynapse(gamma=gamma, activation=name or phi)


def _diversity(values: Mapping[str, Any], scope: Literal["update", "gradient"]) -> Mechanism | None:
    asked = values["fuzzy_lr_distribution"]
    asked = getattr(asked, "value", asked)  # the package has an enum of strings
    if asked not in _LAWS:
        raise ValueError(f"config has fuzzy_lr_distribution={asked!r}; use one of: {', '.join(_LAWS)}")
    law = _LAWS[asked]
    if not _flag(values, "fuzzy_lr_dynamic"):
        law = _STILL.get(asked, law)
    if law is None:
        return None
    low, high = values["fuzzy_lr_min"], values["fuzzy_lr_max"]
    return PlasticityDiversity(
        nu=values["fuzzy_learning_rate_factor_nu"],
        distribution=law,
        scope=scope,
        clip=None if low is None else (low, high),
        decay=values["fuzzy_lr_decay"],
        period=values["fuzzy_lr_update_freq"],
    )


def _crystallization(values: Mapping[str, Any]) -> Crystallization:
    return Crystallization(threshold=values["crystal_thresh"], factor=values["dampening_factor"])


def _volume(values: Mapping[str, Any]) -> VolumePlasticity:
    return VolumePlasticity(
        stability=values["stability_factor"],
        spread=values["lr_variability"],
        base=values["base_lr"],
        normalize=False,
    )


def _remodeling(values: Mapping[str, Any], every: int | None) -> SpineRemodeling:
    if every is None:
        raise ValueError(
            "calls= names 'rejuvenate_weights'; say with rejuvenate_every= how many optimizer steps lie "
            "between two calls, such as len(loader) for one in each epoch"
        )
    return SpineRemodeling(
        every=every, d_re=values["rejuvenation_parameter_dre"], redraw="published", reset_moments=False
    )


def _dale(values: Mapping[str, Any], made: Collection[str]) -> DalePrinciple | None:
    if _flag(values, "apply_dales_principle"):
        return DalePrinciple(signs="incoming")
    if "enforce_dales_principle" in made:
        raise ValueError(
            "calls= names 'enforce_dales_principle', and config has apply_dales_principle=False"
        )
    return None
