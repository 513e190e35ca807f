"""Which mechanism reaches which layer type, read from the reports of small nets around each layer.

``python -m bouton.lab.coverage docs/architectures.md`` writes the table of that page anew.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import string
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from bouton.attachment import attach
from bouton.mechanism import Mechanism, registry

MARKERS = ("<!-- coverage -->", "<!-- end of coverage -->")
_WIDTH = 8  # of every layer; even, and a multiple of each example's gamma


class Conv1D(nn.Module):
    """The dense layer of GPT-2's code, which stores its weight as ``[in, node]``."""

    def __init__(self, nodes: int, inputs: int) -> None:
        super().__init__()
        self.nf = nodes
        self.weight = nn.Parameter(torch.empty(inputs, nodes).normal_(std=0.02))
        self.bias = nn.Parameter(torch.zeros(nodes))

    def forward(self, x: Tensor) -> Tensor:
        """The sums of all nodes."""
        return x @ self.weight + self.bias


def _linear() -> nn.Linear:
    return nn.Linear(_WIDTH, _WIDTH)


# Every layer type that bouton knows, by its name, and what can be done to a weight.
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "Linear": _linear,
    "Conv1d": lambda: nn.Conv1d(_WIDTH, _WIDTH, 3),
    "Conv2d": lambda: nn.Conv2d(_WIDTH, _WIDTH, 3),
    "Conv3d": lambda: nn.Conv3d(_WIDTH, _WIDTH, 3),
    "ConvTranspose1d": lambda: nn.ConvTranspose1d(_WIDTH, _WIDTH, 3),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(_WIDTH, _WIDTH, 3),
    "ConvTranspose3d": lambda: nn.ConvTranspose3d(_WIDTH, _WIDTH, 3),
    "Conv1D of GPT-2": lambda: Conv1D(_WIDTH, _WIDTH),
    "pruned Linear": lambda: prune.l1_unstructured(_linear(), "weight", 0.5),
    "Conv2d with groups": lambda: nn.Conv2d(_WIDTH, _WIDTH, 3, groups=2),
    "Bilinear": lambda: nn.Bilinear(_WIDTH, _WIDTH, _WIDTH),
    "Linear under weight_norm": lambda: parametrizations.weight_norm(_linear()),
    "under spectral_norm": lambda: parametrizations.spectral_norm(_linear()),
    "under orthogonal": lambda: parametrizations.orthogonal(_linear()),
    "RNNCell": lambda: nn.RNNCell(_WIDTH, _WIDTH),
    "LSTMCell": lambda: nn.LSTMCell(_WIDTH, _WIDTH),
    "GRUCell": lambda: nn.GRUCell(_WIDTH, _WIDTH),
    "RNN": lambda: nn.RNN(_WIDTH, _WIDTH),
    "LSTM": lambda: nn.LSTM(_WIDTH, _WIDTH),
    "GRU": lambda: nn.GRU(_WIDTH, _WIDTH),
    "MultiheadAttention": lambda: nn.MultiheadAttention(_WIDTH, 2),
    "Embedding": lambda: nn.Embedding(_WIDTH, _WIDTH),
    "EmbeddingBag": lambda: nn.EmbeddingBag(_WIDTH, _WIDTH),
}


class Cell(NamedTuple):
    """``reach`` is yes, where= (only if that names the layer) or no; ``left`` says why weights are left."""

    reach: str
    left: tuple[str, ...] = ()


@dataclass(frozen=True)
class Coverage:
    """``kinds`` are layer types that all mechanisms reach alike; ``rows`` have a cell for each of them."""

    kinds: tuple[tuple[str, ...], ...]
    rows: dict[str, tuple[Cell, ...]]

    @property
    def reasons(self) -> list[str]:
        """Why weights are left, in the order in which the table comes to them."""
        cells = itertools.chain(*self.rows.values())
        return list(dict.fromkeys(reason for cell in cells for reason in cell.left))

    def write(self, cell: Cell) -> str:
        """A cell as text: its reach, and the numbers of its reasons."""
        numbers = ", ".join(str(self.reasons.index(reason) + 1) for reason in cell.left)
        return f"{cell.reach} {numbers}".strip()


def coverage() -> Coverage:
    """Attaches each example of each registered mechanism to a small net around each layer type.

    Examples of a mechanism that act alike share a row.
    """
    cells: dict[tuple[str, int], list[Cell]] = {}
    with torch.random.fork_rng(devices=[]):
        for make in LAYERS.values():
            net = nn.ModuleDict(
                {"first": _linear(), "layer": make(), "hidden": _linear(), "head": _linear()}
            )
            for name, entry in registry().items():
                for number, example in enumerate(entry.examples):
                    cells.setdefault((name, number), []).append(reach(net, example))
    rows: dict[str, tuple[Cell, ...]] = {}
    for name, entry in registry().items():
        alike: dict[object, list[Mechanism]] = {}
        for number, example in enumerate(entry.examples):
            place = example.site, example.direction, example.observes, tuple(cells[name, number])
            alike.setdefault(place, []).append(example)
        for own in alike.values():
            others = [example for example in entry.examples if example not in own]
            rows[_label(own[0], others)] = tuple(cells[name, entry.examples.index(own[0])])
    kinds: dict[tuple[Cell, ...], list[str]] = {}
    for layer, column in zip(LAYERS, zip(*rows.values(), strict=True), strict=True):
        kinds.setdefault(column, []).append(layer)
    columns = zip(*kinds, strict=True)
    return Coverage(tuple(map(tuple, kinds.values())), dict(zip(rows, columns, strict=True)))


def reach(net: nn.Module, mechanism: Mechanism) -> Cell:
    """What a mechanism does with the child ``layer`` of ``net``."""
    optimizer = torch.optim.SGD(net.parameters())
    for word, where in (("yes", None), ("where=", "*")):
        handle = attach(net, optimizer, [dataclasses.replace(mechanism, where=where)])
        rows = [row for row in handle.report().rows if row.weight.startswith("layer.")]
        handle.detach()
        # sizes in a reason are those of one layer, and the table is about all that are alike
        left = dict.fromkeys(re.sub(r"\d+", "n", row.left_because) for row in rows if row.left_because)
        if any(row.left_because is None for row in rows):
            return Cell(word, tuple(left))
    return Cell("no", tuple(left))


def _label(example: Mechanism, others: list[Mechanism]) -> str:
    """The mechanism's name, and what tells this example from ``others`` unless it is the first one."""
    name = type(example).__name__
    if example == registry()[name].examples[0]:
        return name
    for field in dataclasses.fields(example):
        value = getattr(example, field.name)
        if value not in [getattr(other, field.name) for other in others]:
            return f"{name}({field.name}={value!r})"
    return repr(example)


def print_coverage(found: Coverage, console: Console | None = None) -> None:
    """Prints the table, with a letter for each kind of layer, and the reasons below.

    Args:
        found: what :func:`coverage` found.
        console: where to print; None: the terminal.
    """
    console = console or Console(highlight=False)
    letters = string.ascii_uppercase[: len(found.kinds)]
    for letter, names in zip(letters, found.kinds, strict=True):
        console.print(Text(f"{letter}  {', '.join(names)}"))
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("mechanism", no_wrap=True)
    for letter in letters:
        table.add_column(letter, no_wrap=True)
    for label, cells in found.rows.items():
        written = [found.write(cell).replace(", ", ",") for cell in cells]  # 80 columns hold it so
        table.add_row(Text(re.sub(r"\(.*='(.*)'\)", r"\n- \1", label)), *written)
    console.print(table)
    console.print(
        "yes and a number: some weights of the layer are left. where=: only where this names the layer."
    )
    for number, reason in enumerate(found.reasons, 1):
        console.print(Text(f"{number}  {reason}"))


def to_markdown(found: Coverage) -> str:
    """The table and its reasons for a page."""
    lines = [["mechanism", *(", ".join(names) for names in found.kinds)], ["---"] * (len(found.kinds) + 1)]
    lines += [[f"`{label}`", *map(found.write, cells)] for label, cells in found.rows.items()]
    reasons = [f"{number}. {reason}" for number, reason in enumerate(found.reasons, 1)]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", *reasons])


def write_page(path: Path, found: Coverage) -> None:
    """Writes the table anew where the page's two markers stand.

    Raises:
        ValueError: the page lacks one of them.
    """
    before, start, rest = path.read_text().partition(MARKERS[0])
    _, end, after = rest.partition(MARKERS[1])
    if not end:
        raise ValueError(f"{path} has no {' ... '.join(MARKERS)} for the table to stand between")
    path.write_text(f"{before}{start}\n{to_markdown(found)}\n{end}{after}")


if __name__ == "__main__":
    write_page(Path(sys.argv[1]), coverage())
