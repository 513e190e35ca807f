"""Reading what lies in a file or is typed never executes it, whatever it says."""

from __future__ import annotations

import ast
import dataclasses
import os
import re
import sys
from pathlib import Path

import pytest
from forged import finished, write_sweep

import bouton
from bouton.cli import main
from bouton.lab import define, rebuild
from bouton.mechanism import Mechanism

SOURCE = Path(bouton.__file__).parent
MODULES = {
    "pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "code",
    "codeop", "runpy", "subprocess", "torch.package",
}  # fmt: skip
CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "torch.jit.load",
    "torch.hub.load",
}


def dangers(text: str) -> list[str]:
    """What in a program reads or runs code that lies in data."""
    found = []
    for node in ast.walk(ast.parse(text)):
        names = (
            [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        )
        if isinstance(node, ast.ImportFrom):
            names += [node.module or ""] + [f"{node.module}.{name}" for name in names]
        found += [name for name in names if name in MODULES or name.partition(".")[0] in MODULES]
        if not isinstance(node, ast.Call):
            continue
        call = ast.unparse(node.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if call in CALLS or "allow_pickle" in options or call.endswith("exec_module"):
            found.append(call)
        if call in ("torch.load", "load") and options.get("weights_only") != "True":
            found.append(call)
    return found


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from pickle import loads", "import yaml as y", "from torch import package",
        "eval('1')", "exec(x)", "__import__(x)", "torch.load(f)", "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)", "import os; os.system('x')", "spec.loader.exec_module(m)",
        "from torch import load; load(f)", "import joblib.parallel",
    ],
)  # fmt: skip
def test_the_search_for_dangers_finds_them(text):
    assert dangers(text)
    assert not dangers("torch.load(f, weights_only=True); model.eval(); re.compile('x')")


def test_nothing_in_the_library_reads_code_out_of_data():
    found = {str(path.relative_to(SOURCE)): dangers(path.read_text()) for path in SOURCE.rglob("*.py")}
    # One place runs a file, a user's, named on the command line; another the C compiler on our own source.
    assert {path: what for path, what in found.items() if what} == {
        "lab/sources.py": ["spec.loader.exec_module"],
        "native/library.py": ["subprocess"],
    }


@pytest.mark.parametrize(
    "name", ["os.system", "builtins.eval", "Mechanism", "object", ["Grapes"], {}, None, 1]
)
def test_only_registered_mechanisms_are_built(name):
    with pytest.raises(ValueError, match="no mechanism is called"):
        Mechanism.from_dict({"name": name})


USER_FILE = """
from pathlib import Path
Path(__file__).with_suffix(".ran").touch()
import torch

def make_model():
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))

def make_data():
    x, y = torch.randn(8, 3), torch.tensor([0, 1] * 4)
    return x, y, x, y
"""


def test_a_file_that_a_folder_names_runs_only_when_the_user_names_it(user_file, tmp_path, capsys):
    file = user_file(USER_FILE)
    ran = Path(file).with_suffix(".ran")
    comparison = define(
        data=f"{file}:make_data",
        model=f"{file}:make_model",
        mechanisms=["PlasticityDiversity"],
        epochs=1,
        seeds=2,
    )
    folder = tmp_path / "sweep"
    write_sweep(comparison, folder, finished())
    path, known = list(sys.path), set(sys.modules)
    assert main(["report", str(folder)]) == 0
    assert "The page: " in capsys.readouterr().out
    assert main(["compare", "--data", "digits", "--mechanisms", "Grapes", "--out", str(folder)]) == 2
    assert "holds another comparison" in capsys.readouterr().err
    assert not ran.exists() and sys.path == path
    assert not [name for name in set(sys.modules) - known if name.startswith("bouton_user")]
    named = [
        "--data",
        f"{file}:make_data",
        "--model",
        f"{file}:make_model",
        "--mechanisms",
        "PlasticityDiversity",
    ]
    assert main(["compare", *named, "--seeds", "2", "--epochs", "1", "--out", str(folder)]) == 0
    assert ran.exists(), "the test means nothing"


@pytest.mark.parametrize(
    "text", ["../../up", "/etc/passwd", "a/../../b", "..", "C:\\x", "\x00", "~", "x" * 5000]
)
def test_no_text_in_a_file_leads_out_of_the_folder(text, tmp_path, quiet):
    plain = define(data="digits", mechanisms=["Grapes"], epochs=1, seeds=1)
    source = dataclasses.replace(plain.data, name=text, path=text, sha256=text)
    arms = [
        dataclasses.replace(arm, name=f"{text}{n}", mechanisms=({"name": f"{text}{n}"},))
        for n, arm in enumerate(plain.arms)
    ]
    comparison = dataclasses.replace(
        plain, data=source, model=source, arms=tuple(arms), version=text, command=text
    )
    write_sweep(comparison, tmp_path / "in" / "sweep", finished())
    before = sorted(tmp_path.rglob("*"))
    rebuild(tmp_path / "in" / "sweep", console=quiet)
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "in" / "sweep" / "report.html"])
    names = [path.name for path in (tmp_path / "in" / "sweep" / "runs").iterdir()]
    assert len(names) == 3 and all(re.fullmatch("[0-9a-f]{16}", name) for name in names)


@pytest.mark.parametrize(
    "name", ["with space", "földer ☃", "-x", "a'b\"c", "[red]", os.fsdecode(b"caf\xe9"), "tab\t\x1b[2J"]
)
def test_folders_of_any_name_serve(name, tmp_path, capsys):
    typed = ["compare", "--data", "digits", "--samples", "64", "--mechanisms", "Grapes", "--epochs", "1"]
    assert main([*typed, "--seeds", "1", "--out", f"{tmp_path}/{name}"]) == 0
    assert main(["report", f"{tmp_path}/{name}"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == [name]
    out = capsys.readouterr().out
    assert out.count("The page: ") == 2 and "\x1b" not in out
    out.encode()
