"""`from_bio_config`, key by key, and the page of the documentation that goes with it."""

import enum
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import bouton
from bouton import (
    Crystallization,
    DalePrinciple,
    MultiSynapse,
    PlasticityDiversity,
    SpineRemodeling,
    VolumePlasticity,
    from_bio_config,
)

PAGE = (Path(__file__).parent.parent / "docs" / "coming-from.md").read_text()


class Distribution(str, enum.Enum):  # noqa: UP042 - as the package has it
    BASELINE = "baseline"
    UNIFORM = "uniform"
    NORMAL = "normal"
    LOGNORMAL = "lognormal"
    GAMMA = "gamma"
    BETA = "beta"
    LAYER_ADAPTIVE = "layer_adaptive"
    WEIGHT_ADAPTIVE = "weight_adaptive"
    TEMPORAL = "temporal"
    ACTIVITY = "activity"


class FirstConfig(NamedTuple):
    """As in version 0.0.1."""

    weight_splitting_activation_function: Any = nn.Identity()
    fuzzy_learning_rate_factor_nu: float = 0.16
    dampening_factor: float = 0.6
    crystal_thresh: float = 4.5e-5
    rejuvenation_parameter_dre: float = 8.0
    weight_splitting_Gamma: int = 0  # noqa: N815
    apply_dales_principle: bool = False
    base_lr: float = 0.1
    stability_factor: float = 2.0
    lr_variability: float = 0.2


class LaterConfig(NamedTuple):
    """As in version 0.0.5."""

    weight_splitting_activation_function: Any = nn.Identity()
    fuzzy_learning_rate_factor_nu: float = 0.16
    dampening_factor: float = 0.6
    crystal_thresh: float = 4.5e-5
    rejuvenation_parameter_dre: float = 8.0
    weight_splitting_Gamma: int = 0  # noqa: N815
    apply_dales_principle: bool = False
    base_lr: float = 0.1
    stability_factor: float = 2.0
    lr_variability: float = 0.2
    fuzzy_lr_distribution: Distribution = Distribution.UNIFORM
    fuzzy_lr_min: float = 0.5
    fuzzy_lr_max: float = 2.0
    fuzzy_lr_dynamic: bool = False
    fuzzy_lr_decay: float = 0.9995
    fuzzy_lr_update_freq: int = 100
    fuzzy_lr_layer_index: int = -1
    fuzzy_lr_total_layers: int = -1


FUZZY = "fuzzy_learning_rates"
MOVING = {"fuzzy_lr_distribution": "temporal", "fuzzy_lr_dynamic": True}
# key -> (configuration, calls, what comes out)
CASES = {
    "weight_splitting_activation_function": (
        {"weight_splitting_activation_function": nn.Tanh(), "weight_splitting_Gamma": 3},
        [],
        [MultiSynapse(gamma=3, activation="tanh")],
    ),
    "weight_splitting_Gamma": ({"weight_splitting_Gamma": 4}, [], [MultiSynapse(gamma=4)]),
    "fuzzy_learning_rate_factor_nu": (
        {"fuzzy_learning_rate_factor_nu": 0.3},
        [FUZZY],
        [PlasticityDiversity(nu=0.3)],
    ),
    "fuzzy_lr_distribution": (
        {"fuzzy_lr_distribution": Distribution.BETA},
        [FUZZY],
        [PlasticityDiversity(distribution="beta")],
    ),
    "fuzzy_lr_min": ({"fuzzy_lr_min": 0.7}, [FUZZY], [PlasticityDiversity(clip=(0.7, 2.0))]),
    "fuzzy_lr_max": ({"fuzzy_lr_max": 1.5}, [FUZZY], [PlasticityDiversity(clip=(0.5, 1.5))]),
    "fuzzy_lr_dynamic": (MOVING, [FUZZY], [PlasticityDiversity(distribution="temporal")]),
    "fuzzy_lr_decay": (
        {**MOVING, "fuzzy_lr_decay": 0.9},
        [FUZZY],
        [PlasticityDiversity(distribution="temporal", decay=0.9)],
    ),
    "fuzzy_lr_update_freq": (
        {**MOVING, "fuzzy_lr_update_freq": 7},
        [FUZZY],
        [PlasticityDiversity(distribution="temporal", period=7)],
    ),
    "fuzzy_lr_layer_index": ({"fuzzy_lr_layer_index": 2}, [FUZZY], [PlasticityDiversity()]),
    "fuzzy_lr_total_layers": ({"fuzzy_lr_total_layers": 5}, [FUZZY], [PlasticityDiversity()]),
    "dampening_factor": ({"dampening_factor": 0.5}, ["crystallize"], [Crystallization(factor=0.5)]),
    "crystal_thresh": ({"crystal_thresh": 0.1}, ["crystallize"], [Crystallization(threshold=0.1)]),
    "rejuvenation_parameter_dre": (
        {"rejuvenation_parameter_dre": 4.0},
        ["rejuvenate_weights"],
        [SpineRemodeling(every=9, d_re=4.0, redraw="published", reset_moments=False)],
    ),
    "apply_dales_principle": (
        {"apply_dales_principle": True},
        ["enforce_dales_principle"],
        [DalePrinciple(signs="incoming")],
    ),
    "base_lr": (
        {"base_lr": 0.3},
        ["volume_dependent_lr"],
        [VolumePlasticity(base=0.3, normalize=False)],
    ),
    "stability_factor": (
        {"stability_factor": 1.0},
        ["volume_dependent_lr"],
        [VolumePlasticity(stability=1.0, normalize=False)],
    ),
    "lr_variability": (
        {"lr_variability": 0.4},
        ["volume_dependent_lr"],
        [VolumePlasticity(spread=0.4, normalize=False)],
    ),
}


def test_every_key_has_a_case():
    assert sorted(CASES) == sorted(LaterConfig._fields)


@pytest.mark.parametrize("key", CASES)
def test_every_key_becomes_the_field_it_stands_for(key):
    config, calls, expected = CASES[key]
    every = 9 if "rejuvenate_weights" in calls else None
    for form in (config, LaterConfig(**config), LaterConfig(**config)._asdict()):
        assert from_bio_config(form, calls, rejuvenate_every=every) == expected


@pytest.mark.parametrize("distribution", Distribution)
@pytest.mark.parametrize("dynamic", [False, True])
def test_every_distribution_has_its_law(distribution, dynamic):
    expected = {"layer_adaptive": "depth", "weight_adaptive": "weight", "baseline": None}
    if not dynamic:
        expected |= {"temporal": "uniform", "activity": None}
    law = expected.get(distribution.value, distribution.value)
    for asked in (distribution, distribution.value):
        found = from_bio_config({"fuzzy_lr_distribution": asked, "fuzzy_lr_dynamic": dynamic})
        assert found == ([PlasticityDiversity(distribution=law)] if law else [])


def test_rates_of_the_first_version_have_no_bounds():
    config = FirstConfig(fuzzy_learning_rate_factor_nu=0.9)
    expected = [PlasticityDiversity(nu=0.9, clip=None)]
    assert from_bio_config(config) == from_bio_config(config._asdict()) == expected
    assert from_bio_config({"fuzzy_learning_rate_factor_nu": 0.9}) == [PlasticityDiversity(nu=0.9)]


@pytest.mark.parametrize("gamma", [0, 1])
def test_groups_of_one_node_are_no_splitting(gamma):
    assert from_bio_config({"weight_splitting_Gamma": gamma}, calls=()) == []


def test_only_what_was_called_is_there():
    assert from_bio_config(LaterConfig(), calls=()) == []
    assert from_bio_config(LaterConfig()) == [PlasticityDiversity()]
    assert from_bio_config(LaterConfig(), calls="crystallize") == [Crystallization()]
    assert from_bio_config(LaterConfig(), calls=[FUZZY, "update_fuzzy_learning_rates"]) == [
        PlasticityDiversity()
    ]
    assert from_bio_config(LaterConfig(), scope="gradient") == [PlasticityDiversity(scope="gradient")]


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (nn.Identity(), "identity"),
        (nn.ReLU(), "relu"),
        (nn.Tanh(), "tanh"),
        (nn.Sigmoid(), "sigmoid"),
        (nn.GELU(), "gelu"),
        (nn.SiLU(), "silu"),
        (torch.tanh, "tanh"),
        (nn.functional.gelu, "gelu"),
    ],
)
def test_known_activations_become_names(activation, expected):
    config = {"weight_splitting_activation_function": activation, "weight_splitting_Gamma": 2}
    assert from_bio_config(config, calls=()) == [MultiSynapse(activation=expected)]


@pytest.mark.parametrize("activation", [nn.GELU(approximate="tanh"), nn.LeakyReLU(), abs])
def test_other_activations_stay(activation):
    config = {"weight_splitting_activation_function": activation, "weight_splitting_Gamma": 2}
    (found,) = from_bio_config(config, calls=())
    assert found.activation is activation


def test_all_at_once_can_be_attached():
    config = LaterConfig(weight_splitting_Gamma=2, apply_dales_principle=True)
    mechanisms = from_bio_config(
        config,
        calls=[FUZZY, "crystallize", "volume_dependent_lr", "rejuvenate_weights"],
        rejuvenate_every=2,
    )
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 4), nn.Linear(4, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = bouton.attach(model, optimizer, mechanisms)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(2, 1, 4, 4)).square().sum().backward()
        optimizer.step()
    assert set(handle.stats()) == {type(mechanism).__name__ for mechanism in mechanisms}
    assert len(mechanisms) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({"nu": 0.1},), r"unknown keys \['nu'\]; BioConfig's are: weight_splitting_activation"),
        ((5,), "config is of type int; pass a BioConfig"),
        (({"fuzzy_lr_distribution": "cauchy"},), r"fuzzy_lr_distribution='cauchy'; use one of: baseline"),
        (({"fuzzy_lr_dynamic": "yes"},), "fuzzy_lr_dynamic='yes'; use True or False"),
        (({"apply_dales_principle": 2},), "apply_dales_principle=2; use True or False"),
        (({"fuzzy_learning_rate_factor_nu": -1},), r"PlasticityDiversity\(nu=-1\)"),
        (({"weight_splitting_Gamma": -2},), r"MultiSynapse\(gamma=-2\)"),
        (({}, ["l1_reg"]), r"calls=\['l1_reg'\] have no counterpart; use some of: fuzzy_learning_rates"),
        (({}, "rejuvenate_weights"), "say with rejuvenate_every="),
        (({}, "enforce_dales_principle"), "config has apply_dales_principle=False"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        from_bio_config(*arguments)


def test_an_interval_without_the_call_is_named():
    with pytest.raises(ValueError, match="rejuvenate_every= goes with 'rejuvenate_weights'"):
        from_bio_config({}, rejuvenate_every=3)


@pytest.mark.parametrize("number", range(PAGE.count("```python\n")))
def test_the_page_runs(number, capsys):
    code = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)[number]
    exec(compile(code, f"coming-from.md, example {number}", "exec"), {})


def test_the_page_names_every_key_distribution_and_call():
    for name in (*LaterConfig._fields, *Distribution.__members__):
        assert f"`{name}`" in PAGE
    for call in (FUZZY, "update_fuzzy_learning_rates", "crystallize", "volume_dependent_lr"):
        assert f"`{call}(" in PAGE
