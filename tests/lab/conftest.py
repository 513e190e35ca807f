"""What the lab's tests share: small real comparisons, and nobody's own folders or colours."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from bouton.lab import define
from bouton.lab.comparison import Comparison


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def quiet() -> Console:
    """A console that writes into a string: `quiet.file.getvalue()`."""
    return Console(file=io.StringIO(), width=80, highlight=False)


@pytest.fixture
def small() -> Comparison:
    """Three arms and three seeds on scikit-learn's digits: some two seconds."""
    return define(data="digits", mechanisms=["Grapes"], seeds=3, epochs=2, lr=0.05, command="test")


@pytest.fixture
def user_file(tmp_path: Path):
    """Writes a Python file and gives its path as text."""

    def write(text: str, name: str = "mine.py") -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write
