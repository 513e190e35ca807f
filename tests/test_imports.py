import ast
import subprocess
import sys
from pathlib import Path

import bouton

CORE = [
    path
    for path in Path(bouton.__file__).parent.rglob("*.py")
    if path.name != "cli.py" and "lab" not in path.relative_to(Path(bouton.__file__).parent).parts
]


def test_importing_the_core_imports_no_extra():
    code = (
        "import torch, sys; before = set(sys.modules); import bouton; print(*(set(sys.modules) - before))"
    )
    names = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "bouton.attachment" in names
    assert {name.split(".")[0] for name in names if name.split(".")[0] not in sys.stdlib_module_names} == {
        "bouton"
    }
    assert not any(name.startswith(("bouton.lab", "bouton.cli")) for name in names)


def test_the_core_never_imports_the_lab():
    for path in CORE:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(name.startswith(("bouton.lab", "bouton.cli")) for name in names), path


def test_public_names_exist():
    assert all(hasattr(bouton, name) for name in bouton.__all__)
