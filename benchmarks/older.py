"""The older package, pytorch_bio_transformations, beside the mechanisms that it has too.

It is called in the loop between backward and the optimizer's step, as its README says.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from bouton.lab.bench.measurement import Equip
from bouton.lab.bench.workloads import Training

PACKAGE = "pytorch_bio_transformations==0.0.5"
FOLDER = Path(__file__).parent / ".older"

# For each of our arms: its configuration, and what is called in each step.
SAME: Mapping[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "PlasticityDiversity, static": ({}, ("fuzzy_learning_rates",)),
    "PlasticityDiversity, activity-dependent": (
        {"fuzzy_lr_distribution": "activity", "fuzzy_lr_dynamic": True},
        ("fuzzy_learning_rates",),
    ),
    "VolumePlasticity": ({}, ("volume_dependent_lr",)),
    "Crystallization with diversity": ({}, ("crystallize", "fuzzy_learning_rates")),
    "SpineRemodeling at every step": ({}, ("rejuvenate_weights",)),
    "MultiSynapse, two synapses": ({"weight_splitting_Gamma": 2}, ()),
}


def install() -> None:
    """Puts the package into a folder of its own, without what it depends on, if it is not there."""
    if not FOLDER.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-deps", "--target", str(FOLDER), PACKAGE], check=True)
    sys.path.append(str(FOLDER))


def older_arms() -> dict[str, Equip]:
    """For the name of an arm the same in the older package."""
    return {name: partial(convert, config=config, calls=calls) for name, (config, calls) in SAME.items()}


def convert(training: Training, config: Mapping[str, Any], calls: tuple[str, ...]) -> int:
    """Converts the model in place.

    Args:
        training: its model is converted.
        config: what is not at its default.
        calls: names of the methods to call in each step.

    Returns:
        The number of weights that it takes.
    """
    package = importlib.import_module("bio_transformations")
    kinds = importlib.import_module("bio_transformations.bio_config").Distribution
    config = {key: kinds(value) if key.endswith("distribution") else value for key, value in config.items()}
    model: Any = package.BioConverter(**config).convert(training.model)
    methods: list[Callable[[], None]] = [getattr(model, name) for name in calls]

    def between() -> None:
        for method in methods:
            method()

    training.between = between
    return sum(layer.weight.numel() for layer in model.modules() if hasattr(layer, "bio_mod"))
