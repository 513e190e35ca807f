from __future__ import annotations

import pytest

import bouton
from bouton.lab.arms import arms_of, describe, parse_mechanisms
from bouton.mechanism import registry


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Grapes", [bouton.Grapes()]),
        ('Grapes(mode="local")', [bouton.Grapes(mode="local")]),
        ("Grapes(clip=(1.0, 1.5))", [bouton.Grapes(clip=(1.0, 1.5))]),
        ("Grapes() + MultiSynapse(gamma=4)", [bouton.Grapes(), bouton.MultiSynapse(gamma=4)]),
    ],
)
def test_texts_are_read_and_written_back(text, expected):
    assert parse_mechanisms(text) == expected
    written = " + ".join(describe(mechanism) for mechanism in expected)
    assert parse_mechanisms(written) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Grape", "Did you mean Grapes"),
        ("Grapes(mod=1)", "mod"),
        ('Grapes(mode="sideways")', "sideways"),
        ("Grapes(mode=open('x'))", "must be a number"),
        ("Grapes('local')", "cannot read"),
        ("Grapes(**{})", "cannot read"),
        ("__import__('os').system('true')", "cannot read"),
        ("Grapes() - MultiSynapse()", "cannot read"),
        ("Grapes(", "cannot read"),
        ("", "cannot read"),
    ],
)
def test_what_cannot_be_read_is_refused_in_words(text, message):
    with pytest.raises(ValueError, match=message):
        parse_mechanisms(text)


def test_every_registered_mechanism_is_an_arm_by_default():
    assert [arm.name for arm in arms_of([])] == ["plain", "plain-matched", *registry()]


def test_the_same_arm_twice_is_refused():
    with pytest.raises(ValueError, match="twice"):
        arms_of(["Grapes", "Grapes()"])
