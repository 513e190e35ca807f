import importlib
import sys

import pytest


@pytest.fixture(scope="session")
def interpreted():
    """The module that starts the kernels, with kernels for a CPU, in Triton's interpreter.

    Its blocks are small, so that small weights have several.
    """
    pytest.importorskip("triton", reason="Triton is not installed; make test does that on Linux x86-64")
    names = "bouton.fused.kernels", "bouton.fused.launch"
    compiled = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        launch = importlib.import_module("bouton.fused.launch")
    for name in names:
        del sys.modules[name]
    sys.modules.update(compiled)
    launch._OPTIONS["BLOCK"] = 16
    return launch


@pytest.fixture
def on_cpu(interpreted, monkeypatch):
    """Weights on a CPU are stepped by the kernels, in Triton's interpreter."""
    from bouton.fused import stepping

    monkeypatch.setitem(sys.modules, "bouton.fused.launch", interpreted)
    monkeypatch.setattr(stepping, "_DEVICES", {"cpu"})
