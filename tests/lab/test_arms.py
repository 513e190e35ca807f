from __future__ import annotations

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import bouton
from bouton.cli import main
from bouton.lab.arms import arms_of, describe, parse_mechanisms
from bouton.mechanism import Mechanism, registry


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


TOUCH = "__import__('os').system('touch danger')"
EXPRESSIONS = [
    TOUCH, f"Grapes({TOUCH})", f"Grapes(mode={TOUCH})", f"Grapes(clip=({TOUCH}, 2))", f"Grapes(*[{TOUCH}])",
    f"Grapes(**{{'mode': {TOUCH}}})", "Grapes(clip=open('danger', 'w'))", f"Grapes(where=lambda: {TOUCH})",
    f"Grapes() + {TOUCH}", f"(Grapes if {TOUCH} else Grapes)()", f"[{TOUCH} for _ in 'x'][0]",
    f'Grapes(mode=f"{{{TOUCH}}}")', f"Grapes(mode=[{TOUCH} for _ in 'x'])", f"(x := {TOUCH})",
    f"{{{TOUCH}}}",
    "Grapes.__init__.__globals__['os']", "Grapes.from_dict({})", "Grapes().__class__", "bouton.Grapes()",
    "Grapes(mode='a' 'b'.upper())", f"Grapes\n{TOUCH}", f"Grapes; {TOUCH}", "import os", "\x00", "\ud800",
    "Grapes(clip={[]: 1})", "Grapes(clip={**{}})", "Grapes(clip=1 << 9**9)", "Grapes(clip=9**9**9)",
    "Grapes(clip=" + "(" * 500, "+".join(["Grapes"] * 5000), "Grapes(clip=" + "-" * 5000 + "1)",
    "Grapes(clip=" + "9" * 5000 + ")", "Grapes(mode='local', mode='propagated')", "Grapes(mode='\x00')",
    "Grapes(name='MultiSynapse')", "__class__", "Mechanism", "object()", "print", "Grapes(mode=Grapes)",
    "Grapes(mode=b'local')", "Grapes(clip=...)", "Grapes(clip=1j)", "Grapes(where=3)",
    "Grapes(where={'a': 1})",
]  # fmt: skip


@pytest.mark.parametrize("text", EXPRESSIONS, ids=range(len(EXPRESSIONS)))
def test_what_is_typed_as_a_mechanism_is_never_executed(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError):
        parse_mechanisms(text)
    assert main(["compare", "--data", "digits", "--mechanisms", text]) == 2
    error = capsys.readouterr().err
    assert error.startswith("bouton: ") and len(error) < 500
    assert list(tmp_path.iterdir()) == []


@given(st.text() | st.text("Grapes()[]{}'\"=,.+-*:\\0123abc_ \n").map("Grapes({})".format))
@example("Grapes(clip=None)")
@pytest.mark.filterwarnings("ignore::SyntaxWarning")  # of Python on "1()" and the like
def test_any_text_is_read_as_mechanisms_or_refused(text):
    with contextlib.suppress(ValueError):
        assert all(isinstance(mechanism, Mechanism) for mechanism in parse_mechanisms(text))
