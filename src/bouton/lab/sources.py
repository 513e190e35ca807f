"""Where a data set or a model comes from: a built-in name, or a function in the user's own file."""

from __future__ import annotations

import copy
import difflib
import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from bouton.lab.data import DATASETS
from bouton.lab.dataset import Dataset
from bouton.lab.models import MODELS


@dataclass(frozen=True, kw_only=True)
class Source:
    """A built-in name, or `file.py:function` with the file's place and content hash.

    The hash makes an edited file a new source, so that its runs are made anew. It covers the
    file itself, not what the file imports.

    Args:
        name: the text as typed.
        path: the user's file, or None for a built-in name.
        sha256: the hash of the file's content, or None for a built-in name.
    """

    name: str
    path: str | None = None
    sha256: str | None = None

    @property
    def function(self) -> str:
        """The function's name in the user's file."""
        return self.name.rpartition(":")[2]


def parse_source(text: str, builtin: Collection[str], *, what: str) -> Source:
    """Reads `mnist1d` or `file.py:make_data`.

    Args:
        text: what the user typed.
        builtin: the built-in names.
        what: "data" or "model", for the error.

    Raises:
        ValueError: if the text is no built-in name and names no file.

    Example:
        >>> parse_source("digits", ["digits", "mnist1d"], what="data").name
        'digits'
    """
    if text in builtin:
        return Source(name=text)
    file, colon, function = text.rpartition(":")
    if not colon:
        near = difflib.get_close_matches(text, builtin, n=1)
        raise ValueError(
            f"unknown {what} {text!r}: expected {', '.join(builtin)}, or file.py:make_{what}"
            + (f". Did you mean {near[0]}?" if near else "")
        )
    path = Path(file)
    if not path.is_file() or path.suffix != ".py":
        raise ValueError(f"{what} {text!r}: there is no Python file {file!r}")
    if not function.isidentifier():
        raise ValueError(f"{what} {text!r}: {function!r} is no function name")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Source(name=text, path=str(path.resolve()), sha256=digest)


@cache
def load_data(source: Source, samples: int | None = None) -> Dataset:
    """Loads a data set, once per process.

    Args:
        source: where it comes from.
        samples: how many training samples to take; None: all.

    Raises:
        ValueError: if the user's function fails, or returns no data set; if there are fewer samples.
    """
    return _load_whole(source).first(samples)


@cache
def _load_whole(source: Source) -> Dataset:
    if source.path is None:
        return DATASETS[source.name]()
    made = _call(source)
    if isinstance(made, Dataset):
        return made
    if not isinstance(made, tuple | list) or len(made) != 4:
        found = f"{type(made).__name__} of {len(made)}" if hasattr(made, "__len__") else repr(made)
        raise ValueError(
            f"{source.name} must return (x_train, y_train, x_test, y_test) or a "
            f"bouton.lab.Dataset; it returned {found[:80]}"
        )
    return Dataset.of(source.name, *made)


def build_model(source: Source, dataset: Dataset) -> nn.Module:
    """Builds a fresh model; the caller seeds the random numbers.

    Raises:
        ValueError: if the user's function fails, or returns no module with a parameter.
    """
    if source.path is None:
        return MODELS[source.name](dataset)
    model = _call(source, dataset)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{source.name} must return a torch.nn.Module; it returned {type(model).__name__}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"{source.name} returned a model without a parameter to train")
    # A function that returns the same module twice must not pass training on from run to run.
    fresh: nn.Module = _guarded(source, lambda: copy.deepcopy(model))
    return fresh


def _call(source: Source, *offered: Any) -> Any:
    """Calls the user's function, with what is offered if it takes a parameter."""
    function = getattr(_module(source), source.function, None)
    if not callable(function):
        there = [name for name, thing in vars(_module(source)).items() if inspect.isfunction(thing)]
        raise ValueError(f"{source.path} has no function {source.function!r}; it has: {', '.join(there)}")
    takes = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if len(takes) > len(offered):
        raise ValueError(
            f"{source.name} takes {len(takes)} parameters, expected "
            + ("none, or the data set" if offered else "none")
        )
    return _guarded(source, lambda: function(*offered[: len(takes)]))


@cache
def _module(source: Source) -> ModuleType:
    assert source.path is not None and source.sha256 is not None
    path = Path(source.path)
    spec = importlib.util.spec_from_file_location(f"bouton_user_{source.sha256[:12]}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Known to `sys.modules` while it runs, as dataclasses and pickling need; its folder on the
    # path, as if it were run as a script, so that it can import its neighbours.
    sys.modules[module.__name__] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    _guarded(source, lambda: spec.loader.exec_module(module))  # type: ignore[union-attr]
    return module


def _guarded(source: Source, call: Callable[[], Any]) -> Any:
    """Runs the user's code; what it raises becomes one line that says where."""
    try:
        return call()
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == source.path]
        where = f"{source.path}, line {lines[-1]}" if lines else source.path
        raise ValueError(f"{source.name} raised {type(error).__name__}: {error} ({where})") from error
