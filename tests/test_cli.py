from __future__ import annotations

import subprocess
import sys

import pytest

import bouton
from bouton.cli import main
from bouton.lab.data import DATASETS
from bouton.lab.models import MODELS
from bouton.mechanism import registry


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"bouton {bouton.__version__}\n"


def test_list_shows_everything_there_is(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    for name in (*registry(), *DATASETS, *MODELS):
        assert name in shown


def test_compare_then_report(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    command = ["compare", "--data", "digits", "--mechanisms", "Grapes", "MultiSynapse(gamma=4)"]
    assert main([*command, "--seeds", "1", "--epochs", "1", "--out", str(tmp_path)]) == 0
    first = capsys.readouterr().out
    assert f"The page: {tmp_path / 'report.html'}" in first
    assert main(["report", str(tmp_path)]) == 0
    second = capsys.readouterr().out
    assert first.endswith(second)
    assert "bouton compare --data digits" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["compare", "--data", "digit"], "Did you mean digits?"),
        (["compare", "--model", "nets.py:make_model"], "no Python file 'nets.py'"),
        (["compare", "--mechanisms", "Grape"], "Did you mean Grapes?"),
        (["compare", "--optimizer", "sdg"], "expected sgd, momentum"),
        (["compare", "--seeds", "0"], "seeds must be 1 or more, found 0"),
        (["compare", "--data", "digits", "--samples", "1438"], "digits has 1437 training samples"),
        (["compare", "--data", "mnist1d", "--model", "resnet9"], "Type --model mlp"),
        (["compare", "--lr", "nan"], "lr must be a positive number"),
        (["compare", "--threads", "0"], "threads must be 1 or more"),
        (["report", "no-such-folder"], "no-such-folder holds no comparison"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(typed, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(typed) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("bouton: ") and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_failed_run_is_exit_code_1(tmp_path, capsys):
    # 256 nodes do not divide into groups of 3: this arm fails, the others go on.
    command = ["compare", "--data", "digits", "--mechanisms", "MultiSynapse(gamma=3)"]
    assert main([*command, "--seeds", "1", "--epochs", "1", "--out", str(tmp_path)]) == 1
    assert "failed with 1 of 1 seeds: " in capsys.readouterr().out.replace("\n", " ")


def test_a_missing_extra_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert main(["list"]) == 2
    assert "pip install 'bouton[lab]'" in capsys.readouterr().err


def test_the_spiking_model_needs_snntorch_and_the_others_do_not(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "snntorch", None)
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "--data", "digits", "--model", "snn"]) == 2
    assert "snntorch is not installed. Type: pip install 'bouton[lab]'" in capsys.readouterr().err
    command = ["compare", "--data", "digits", "--model", "rnn", "--mechanisms", "Grapes"]
    assert main([*command, "--samples", "64", "--seeds", "1", "--epochs", "1"]) == 0


def test_the_help_names_all_data_and_models(capsys):
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name in (*DATASETS, *MODELS, "--samples"):
        assert name in shown


def test_help_and_the_library_load_nothing_heavy():
    program = (
        "import sys, bouton, bouton.cli\n"
        "try: bouton.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'plotly', 'scipy', 'sklearn', 'pandas', 'mnist1d', 'matplotlib', 'snntorch'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout
