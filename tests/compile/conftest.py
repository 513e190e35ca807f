"""Graphs are made of operations of torch, and are compared with the same operations without a graph."""

import pytest

from bouton.native import calls


@pytest.fixture(autouse=True)
def _torch_alone(monkeypatch):
    monkeypatch.setattr(calls, "library", lambda: None)
