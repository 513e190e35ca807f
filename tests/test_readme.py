"""The README's examples run, and its hand-kept table is complete."""

import re
from pathlib import Path

import pytest

import bouton

README = (Path(__file__).parent.parent / "README.md").read_text()


@pytest.mark.parametrize("number", range(README.count("```python")))
def test_examples_run(number):
    code = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[number]
    exec(compile(code, f"README.md, example {number}", "exec"), {})


def test_every_mechanism_has_a_row():
    for name in bouton.registry():
        assert f"| `{name}` |" in README
