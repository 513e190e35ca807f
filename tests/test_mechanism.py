import json

import pytest
import torch

import bouton
from bouton.mechanism import Mechanism
from bouton.sites import RandomStream, Synapses

ALL = [m for entry in bouton.registry().values() for m in (*entry.neutral, *entry.examples)]


@pytest.mark.parametrize("mechanism", ALL, ids=str)
def test_round_trip_through_json(mechanism):
    assert Mechanism.from_dict(json.loads(json.dumps(mechanism.to_dict()))) == mechanism


@pytest.mark.parametrize("mechanism", ALL, ids=str)
def test_frozen_and_keyword_only(mechanism):
    with pytest.raises(AttributeError):
        mechanism.where = "x"
    with pytest.raises(TypeError):
        type(mechanism)("x")


def test_every_mechanism_is_exported_and_documented():
    for name, entry in bouton.registry().items():
        assert getattr(bouton, name) is entry.cls
        assert name in bouton.__all__
        for part in (".. math::", "Args:", "Raises:", "When not to use it", "References:", "Example:"):
            assert part in entry.cls.__doc__, f"{name} has no {part}"


def test_callables_cannot_become_json():
    with pytest.raises(ValueError, match=r"MultiSynapse.activation is the builtin.*use a name"):
        bouton.MultiSynapse(activation=torch.tanh).to_dict()
    assert 'tanh"}' in bouton.MultiSynapse(activation=torch.tanh).describe()


def test_unknown_names_and_fields_are_named():
    with pytest.raises(ValueError, match="no mechanism is called 'Grape'; there are: Crystallization, "):
        Mechanism.from_dict({"name": "Grape"})
    with pytest.raises(ValueError, match=r"Grapes has no field \['cut'\]; its fields are: where, mode"):
        Mechanism.from_dict({"name": "Grapes", "cut": 1})


def test_a_stream_depends_on_its_seed_name_and_count_only():
    def draw(stream):
        return torch.rand(3, generator=stream.generator(torch.device("cpu"))).tolist()

    first = RandomStream(1, "a")
    draws = [draw(first) for _ in range(3)]
    torch.manual_seed(5)
    assert draw(RandomStream(1, "a", count=2)) == draws[2]
    others = [draw(RandomStream(2, "a")), draw(RandomStream(1, "b")), *draws]
    assert len({tuple(other) for other in others}) == 5


def test_draws_depend_neither_on_memory_format_nor_on_precision():
    weight = torch.zeros(4, 3, 5, 5)

    def draws(weight):
        synapses = Synapses(weight, stream=RandomStream(0, "test"))
        return synapses.uniform(-1, 1), synapses.normal()

    expected = draws(weight)
    for other in (weight.to(memory_format=torch.channels_last), weight.bfloat16(), weight.half()):
        for ours, drawn in zip(draws(other), expected, strict=True):
            assert ours.dtype == torch.float32
            assert torch.equal(ours, drawn)


def test_where_is_checked():
    assert bouton.Grapes(where=["a", "b.*"]) == bouton.Grapes(where=("a", "b.*"))
    for wrong in (5, torch.nn.Linear(2, 2), [1], iter("ab")):
        with pytest.raises(ValueError, match=r"Grapes\(where=.*use a glob"):
            bouton.Grapes(where=wrong)


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="a mechanism called Grapes is registered already"):
        bouton.register(paper="", neutral=())(type("Grapes", (Mechanism,), {}))
    with pytest.raises(ValueError, match=r"Grapes\.from_dict was given a MultiSynapse"):
        bouton.Grapes.from_dict({"name": "MultiSynapse"})
