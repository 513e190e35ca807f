"""The arms of a comparison, and how mechanisms are written as text."""

from __future__ import annotations

import ast
import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import bouton
from bouton.mechanism import Mechanism, registry

Control = Literal["plain", "matched"] | None


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way of training that a comparison compares.

    Args:
        name: what tables call it.
        mechanisms: attached together; their dictionaries.
        match_lr_to: mechanisms whose mean factor multiplies the learning rate.
        control: "plain" is the reference; "matched" is plain at a matched learning rate; None is
            an arm in question.
        optional: left out, and named with the reason, where the model does not allow it; an arm that
            is not optional fails there.
    """

    name: str
    mechanisms: tuple[dict[str, Any], ...] = ()
    match_lr_to: tuple[dict[str, Any], ...] = ()
    control: Control = None
    optional: bool = False


def controls() -> list[Arm]:
    """The controls of every comparison.

    `plain` is the same training without a mechanism. `plain-matched` is plain at the learning
    rate times the mean factor that Grapes has on the fresh model: what is no better than that may
    only act as a larger learning rate.
    """
    matched = (bouton.Grapes().to_dict(),)
    return [
        Arm(name="plain", control="plain"),
        Arm(name="plain-matched", control="matched", match_lr_to=matched, optional=True),
    ]


def arms_of(mechanisms: Sequence[str]) -> list[Arm]:
    """The controls and one arm for each text.

    Args:
        mechanisms: texts as `parse_mechanisms` reads them; empty: every registered mechanism, each
            of them optional.

    Raises:
        ValueError: if a text cannot be read, or two mean the same.

    Example:
        >>> [arm.name for arm in arms_of(["Grapes(clip=None)"])]
        ['plain', 'plain-matched', 'Grapes(clip=None)']
    """
    arms = controls()
    for text in mechanisms or list(registry()):
        together = parse_mechanisms(text)
        name = " + ".join(describe(mechanism) for mechanism in together)
        if any(arm.name == name for arm in arms):
            raise ValueError(f"the arm {name} is there twice: leave one out")
        dictionaries = tuple(mechanism.to_dict() for mechanism in together)
        arms.append(Arm(name=name, mechanisms=dictionaries, optional=not mechanisms))
    return arms


def parse_mechanisms(text: str) -> list[Mechanism]:
    """Reads `Grapes`, `Grapes(mode="local")` or `Grapes() + MultiSynapse(gamma=2)`.

    Only names of mechanisms and literal values are read; nothing is evaluated.

    Args:
        text: one or several mechanisms, joined by `+`.

    Raises:
        ValueError: if the text is something else, names no mechanism, or a value is refused.

    Example:
        >>> [describe(m) for m in parse_mechanisms("Grapes() + MultiSynapse(gamma=4)")]
        ['Grapes', 'MultiSynapse(gamma=4)']
    """
    try:
        return _parse(ast.parse(text.strip(), mode="eval").body, text)
    except (SyntaxError, RecursionError, MemoryError):  # the last two: nested too deeply
        raise _unreadable(text) from None


def describe(mechanism: Mechanism) -> str:
    """Writes a mechanism as `parse_mechanisms` reads it, without the values left at default.

    Example:
        >>> describe(bouton.Grapes(mode="local"))
        "Grapes(mode='local')"
    """
    changed = [
        f"{field.name}={getattr(mechanism, field.name)!r}"
        for field in dataclasses.fields(mechanism)
        if getattr(mechanism, field.name) != field.default
    ]
    name = type(mechanism).__name__
    return f"{name}({', '.join(changed)})" if changed else name


def _parse(node: ast.expr, text: str) -> list[Mechanism]:
    match node:
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _parse(left, text) + _parse(right, text)
        case ast.Name(id=name):
            return [_make(name, {})]
        case ast.Call(func=ast.Name(id=name), args=[], keywords=keywords):
            values: dict[str, Any] = {}
            for keyword in keywords:
                if keyword.arg is None or keyword.arg in ("name", *values):  # the name stands before
                    raise _unreadable(text)
                try:
                    values[keyword.arg] = ast.literal_eval(keyword.value)
                except (ValueError, TypeError):  # TypeError: a dictionary whose key is a list
                    raise ValueError(
                        f"{name}: the value of {keyword.arg} in {text[:200]!r} must be a number, a "
                        'string in quotes, True, False, None or a tuple, as in mode="local"'
                    ) from None
            return [_make(name, values)]
        case _:
            raise _unreadable(text)


def _make(name: str, values: dict[str, Any]) -> Mechanism:
    known = registry()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise ValueError(
            f"unknown mechanism {name!r}: expected one of {', '.join(known)}"
            + (f". Did you mean {near[0]}?" if near else "")
        )
    try:
        return Mechanism.from_dict({"name": name, **values})
    except TypeError as error:  # a value of a type that the mechanism's check cannot compare
        raise ValueError(f"{name}: a value is of the wrong type ({error})") from error


def _unreadable(text: str) -> ValueError:
    return ValueError(
        f"cannot read the mechanisms {text[:200]!r}: expected a name, or a name with keyword values, "
        'joined by +; for example Grapes, Grapes(mode="local") or Grapes()+MultiSynapse(gamma=2)'
    )
