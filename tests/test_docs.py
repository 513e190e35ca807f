"""The examples in docs/checkpoints.md run, in order, and the tests that a page names are there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("page", ["checkpoints", "what-is-tested"])
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    text = (ROOT / "docs" / f"{page}.md").read_text()
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)):
        exec(compile(code, f"docs/{page}.md, block {number}", "exec"), names)


def test_every_test_that_a_page_names_is_there():
    named = [
        re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text())
        for page in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    ]
    for file, function in [name for names in named for name in names]:
        tree = ast.parse((ROOT / file).read_text())
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert not function or function in functions, f"{file}::{function}"


def test_every_test_of_real_training_is_named_on_the_page():
    page = (ROOT / "docs" / "what-is-tested.md").read_text()
    for folder in ("training", "compile", "distributed", "numbers"):
        for file in (ROOT / "tests" / folder).glob("test_*.py"):
            assert f"tests/{folder}/{file.name}" in page
