"""Ways to damage the files of a sweep so that it must be seen in the file itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from bouton.lab import define
from bouton.lab.comparison import FILE
from bouton.lab.runs import CONFIG, METRICS, RESULT, SUMS

COMPARISON = define(data="digits", samples=64, mechanisms=["Grapes"], epochs=2, seeds=2)
KEY = COMPARISON.config(COMPARISON.arms[2], 1).key
PLACES = {FILE: Path(FILE), **{name: Path("runs", KEY, name) for name in (CONFIG, METRICS, RESULT, SUMS)}}


def edit(**changes: object) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        first, *others = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        path.write_text("\n".join([json.dumps(json.loads(first) | changes), *others]))

    return damage


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


ANY = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(bytes(range(256))),
    "another shape": lambda path: path.write_text("[]\n[]\n"),
    "a string": lambda path: path.write_text('"config"'),
    "deep": lambda path: path.write_text("[" * 100_000),
    "not UTF-8": lambda path: path.write_bytes(path.read_bytes().replace(b"e", b"\xe9")),
    "a folder": replace_by_folder,
    "an extra field": edit(extra=1),
}
OWN = {
    FILE: {
        "seeds": [0, -1, 2.5, "2", None, True, 10**9, 10**30],
        "lr": [float("nan"), float("inf"), 0, "0.1", [0.1]],
        "arms": [[], {}, [{"name": 1}], [{"name": "a", "mechanisms": "x"}], [{"name": "a"}, {"name": "a"}]],
        "data": ["digits", {"name": 3}, {"path": "x"}, None],
        "optimizer": ["none", 1],
        "left_out": [[["a"]], "ab", [["a", 1]]],
    },
    METRICS: {
        "epoch": [0, 2, "1", None],
        "test_accuracy": [float("nan"), -0.1, 1.1, "0.5", True],
        "train_loss": [float("inf"), None],
        "step_seconds": [0, -1],
    },
    RESULT: {
        "status": ["done", None, 1],
        "stats": [[], {"Grapes": 1}, {"Grapes": {"1.weight": {"mean": "x"}}}],
        "environment": [[], {"torch": ["2"]}],
        "lr": ["0.1", float("nan")],
        "parameters": [None, 1.5],
        "error": [1, ["x"]],
    },
    CONFIG: {"seed": [2], "lr": ["0.01"], "data": [{"name": "mnist1d", "path": None, "sha256": None}]},
}
# Of sums there are no fields; and without a line it is the result that says something wrong: a test below.
NONE = [(SUMS, "an extra field"), (METRICS, "empty")]
DAMAGES = [(name, kind, damage) for name in PLACES for kind, damage in ANY.items()
           if (name, kind) not in NONE] + [
    (name, f"{field}={value!r}", edit(**{field: value}))
    for name, fields in OWN.items() for field, values in fields.items() for value in values
]  # fmt: skip
