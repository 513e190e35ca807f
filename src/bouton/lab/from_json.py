"""Files of JSON read back strictly: each value must be of the type that its field is declared with."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def parse(text: str) -> Any:
    """Reads one JSON value; numbers that are not finite, or have too many digits, are refused.

    Raises:
        ValueError: if the text is something else.
    """
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite, parse_int=_whole)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read(path: Path) -> Any:
    """Reads a file that holds one JSON value.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it holds something else.
    """
    return parse(path.read_text("utf-8"))


def build(kind: Any, value: Any, place: str = "") -> Any:
    """Builds a dataclass, or a tuple, dictionary or number, from JSON's values.

    Nothing is converted but lists to tuples and objects to dataclasses, and no other class is ever made.

    Args:
        kind: the declared type: a dataclass, tuple, dict, union, Literal, Any or a class of JSON's own.
        value: as `read` gave it.
        place: where the value stands in its file, for the error.

    Raises:
        ValueError: if a value is of another type, or a dataclass refuses it.

    Example:
        >>> build(tuple[int, ...], [1, 2])
        (1, 2)
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, place)
    if origin in (Union, UnionType):
        return _build_union(kind, value, place)
    if origin is Literal and value in arguments and isinstance(value, str):
        return value
    if origin is tuple and isinstance(value, list):
        kinds = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        if len(kinds) == len(value):
            return tuple(
                build(k, item, f"{place}[{n}]")
                for n, (k, item) in enumerate(zip(kinds, value, strict=True))
            )
    if origin is dict and isinstance(value, dict):
        return {key: build(arguments[1], item, _below(place, key)) for key, item in value.items()}
    # True is an int to Python; an int will do for a float, and stays one, as hashes of it must not change
    if isinstance(value, bool) == (kind is bool) and isinstance(value, _CLASSES.get(kind, ())):
        return value
    raise _wrong(kind, value, place)


_CLASSES: dict[Any, tuple[type, ...]] = {
    bool: (bool,),
    int: (int,),
    float: (float, int),
    str: (str,),
    NoneType: (NoneType,),
}


def _build_dataclass(kind: Any, value: Any, place: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(kind, value, place)
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := sorted(value.keys() - fields.keys()):
        raise ValueError(f"{_below(place, unknown[0])} is unknown")
    for name, field in fields.items():
        if name not in value and field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{_below(place, name)} is missing")
    return kind(**{name: build(hints[name], item, _below(place, name)) for name, item in value.items()})


def _build_union(kind: Any, value: Any, place: str) -> Any:
    for option in get_args(kind):
        try:
            return build(option, value, place)
        except ValueError:
            continue
    raise _wrong(kind, value, place)


def _below(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _wrong(kind: Any, value: Any, place: str) -> ValueError:
    expected = getattr(kind, "__name__", str(kind)) if get_origin(kind) is None else str(kind)
    return ValueError(f"{place or 'it'} should be {expected}, and is {repr(value)[:60]}")


def _refuse(name: str) -> float:
    raise ValueError(f"it holds {name}, which is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"it holds {text[:40]}, which is too large")
    return number


def _whole(text: str) -> int:
    if len(text) > 18:  # nothing that is counted here comes near, and floats are made of it
        raise ValueError(f"it holds {text[:40]}, which is too large")
    return int(text)
