"""The README's examples run, and its hand-kept table is complete."""

import re
from pathlib import Path

import pytest

import bouton
from bouton.lab import read_comparison
from bouton.lab.report.table import make_table
from bouton.lab.runs import RunStore
from bouton.lab.summary import summarise

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "results" / "fashion-mnist-mlp"


@pytest.mark.parametrize("number", range(README.count("```python")))
def test_examples_run(number):
    code = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[number]
    exec(compile(code, f"README.md, example {number}", "exec"), {})


def test_every_mechanism_has_a_row():
    for name in bouton.registry():
        assert f"| `{name}` |" in README


def test_the_table_is_that_of_the_committed_runs():
    comparison = read_comparison(RESULTS)
    table = make_table(summarise(comparison, comparison.results(RunStore(RESULTS))))
    lines = README.splitlines()
    for row in table.rows:
        cells = [cell.replace("\n", " ") for cell in row]
        assert f"| {' | '.join(cells)} |" in lines
    assert comparison.command in README
