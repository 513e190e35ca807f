"""What there is: mechanisms, data sets and models, read from the code itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bouton.lab.data import DATASETS
from bouton.lab.models import MODELS
from bouton.mechanism import registry


def print_listing(console: Console | None = None) -> None:
    """Prints three tables.

    Args:
        console: where to print; None: the terminal.
    """
    console = console or Console(highlight=False)
    mechanisms = Table(box=box.SIMPLE_HEAD)
    for header in ("mechanism", "site", "what it does", "paper"):
        mechanisms.add_column(header, no_wrap=header == "mechanism")
    for name, entry in registry().items():
        # A mechanism may act at one site or another, as its options say.
        sites = dict.fromkeys(example.site for example in entry.examples)
        cells = (name, " or ".join(sites), _first_line(entry.cls), entry.paper)
        mechanisms.add_row(*map(Text, cells))
    console.print(mechanisms)
    for header, option, known in (("data", "--data", DATASETS), ("model", "--model", MODELS)):
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column(header)
        table.add_column(f"what it is ({option}; or your own {option} file.py:make_{header})")
        for name, function in known.items():
            table.add_row(Text(name), Text(_first_line(function)))
        console.print(table)


def _first_line(thing: Callable[..., Any]) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]
