"""What the user's own data and model return is checked; what they raise ends their own run alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab_commands import fork, runs, whole
from markupsafe import escape

from bouton.cli import main
from bouton.lab import carry_out, define
from bouton.lab.runs import RunStore
from bouton.lab.visible import visible

USER = """
import torch
from torch import nn

def make_model(dataset):
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, dataset.classes))

def make_small():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))

def make_data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=generator)
    y = (x.sum(1) > 0).long()
    return x[:150].numpy(), y[:150].numpy(), x[150:], y[150:]

def wrong_model():
    return "a net"

def narrow_model():
    return nn.Linear(6, 7)

def deep_model():
    return nn.Linear(60, 2)

def wrong_data():
    return 1, 2

def broken_data():
    return {}["key"]

def leaving_data():
    exit(3)

class leaving_model(nn.Linear):
    def __init__(self):
        super().__init__(6, 2)
    def forward(self, x):
        exit(4)

def counted_from_one():
    x_train, y_train, x_test, y_test = make_data()
    return x_train, y_train + 1, x_test, y_test + 1
"""


def of_users(file: str, model: str = "make_model", data: str = "make_data"):
    return define(
        data=f"{file}:{data}", model=f"{file}:{model}", mechanisms=["Grapes"],
        seeds=2, epochs=2, batch_size=16, lr=0.1,
    )  # fmt: skip


@pytest.mark.parametrize("model", ["make_model", "make_small"])
def test_the_users_own_data_and_model(user_file, tmp_path, quiet, model):
    summary = carry_out(of_users(user_file(USER), model), tmp_path / "out", console=quiet)
    assert all(arm.count("finished") == 2 for arm in summary.arms)
    assert summary.arms[0].accuracy > 0.5


def test_an_edited_file_is_a_new_run(user_file):
    first = of_users(user_file(USER))
    second = of_users(user_file(USER + "\n# edited"))
    assert first.config(first.arms[0], 0).key != second.config(second.arms[0], 0).key


MOODY = """
import os, sys

class Odd(BaseException):
    pass

class Mute(Exception):
    def __str__(self):
        raise ValueError("no words")

class Moody(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = make_small()
    def forward(self, x):
        if self.training and torch.initial_seed() == 1:
            {statement}
        return self.net(x)

def make_moody():
    if torch.initial_seed() == 1:
        {statement}
    return make_small()
"""
FAILURES = {
    'raise RuntimeError("not on seed one")': "RuntimeError: not on seed one",
    'raise RuntimeError("odd \\ud800 \\x1b[2J [red]")': r"RuntimeError: odd \ud800 \x1b[2J [red]",
    "return self(x)": "RecursionError: maximum recursion depth exceeded",
    "raise MemoryError": "MemoryError",
    "torch.empty(2**60)": "RuntimeError: ",
    'sys.exit("leaving")': "SystemExit: leaving",
    "raise GeneratorExit": "GeneratorExit",
    "raise Odd": "Odd",
    "raise Mute": "Mute: <exception str() failed>",
}


def moody(user_file, statement: str) -> str:
    return user_file(USER + MOODY.format(statement=statement))


@pytest.mark.parametrize(("statement", "words"), FAILURES.items(), ids=FAILURES)
def test_a_failing_run_is_recorded_and_stops_nothing(statement, words, user_file, tmp_path, quiet):
    comparison = of_users(moody(user_file, statement), "Moody")
    summary = carry_out(comparison, tmp_path / "out", console=quiet)
    assert [arm.count("failed") for arm in summary.arms] == [1, 1, 1]
    assert [arm.count("finished") for arm in summary.arms] == [1, 1, 1]
    result = RunStore(tmp_path / "out").load(comparison.config(comparison.arms[0], 1))
    assert result.error.startswith("Traceback") and "in forward" in result.error
    assert words in visible(summary.arms[0].verdict)
    shown = " ".join(quiet.file.getvalue().split())
    assert words in shown and "\x1b" not in shown
    assert escape(words) in (tmp_path / "out" / "report.html").read_text()


def test_a_failed_run_is_tried_again_by_the_next_start(user_file, tmp_path, quiet):
    comparison = of_users(moody(user_file, "raise RuntimeError"), "make_moody")
    for _ in range(2):
        summary = carry_out(comparison, tmp_path / "out", console=quiet)
        assert [arm.count("failed") for arm in summary.arms] == [1, 1, 1]
    shown = quiet.file.getvalue()
    assert shown.count("seed 1  plain  failed: ValueError: ") == 2 and shown.count("(made before)") == 3


def typed(file: str, model: str) -> list[str]:
    sources = ["--data", f"{file}:make_data", "--model", f"{file}:{model}", "--mechanisms", "Grapes"]
    return ["compare", *sources, "--seeds", "2", "--epochs", "1"]


def test_a_keyboard_interrupt_is_always_the_users(user_file, tmp_path, capsys):
    """Raised by the user's code it cannot be told from Ctrl-C, and stops the sweep as that does."""
    command = typed(moody(user_file, "raise KeyboardInterrupt"), "Moody")
    assert main([*command, "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err.strip().startswith("bouton: stopped.")
    assert len(runs(tmp_path / "out")) == 3  # those of seed 0


def test_a_process_that_the_users_code_ends_keeps_what_is_finished(user_file, tmp_path):
    command = [*typed(moody(user_file, "os._exit(7)"), "Moody"), "--out", tmp_path / "out"]
    assert fork(command, tmp_path / "logs").code == 7
    before = runs(tmp_path / "out")
    assert len(before) == 3 == len(whole(tmp_path / "out"))
    assert fork(command, tmp_path / "logs").code == 7
    assert runs(tmp_path / "out") == before


@pytest.mark.parametrize("seed", ["", "if torch.initial_seed() == 1: "])
def test_code_that_changes_the_working_directory_moves_nothing(
    seed, user_file, tmp_path, monkeypatch, capsys
):
    text = f"import os\n{USER}\ndef make_mover():\n    {seed}os.chdir('/')\n    return make_small()\n"
    monkeypatch.chdir(tmp_path)
    assert main([*typed(user_file(text), "make_mover"), "--out", "out"]) == 0
    assert Path.cwd() == tmp_path and len(runs(tmp_path / "out")) == 6
    assert "The page: out/report.html" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"model": "wrong_model"}, "must return a torch.nn.Module; it returned str"),
        ({"model": "deep_model"}, r"cannot take two samples of .*\(2, 6\): RuntimeError: mat1 and mat2"),
        ({"model": "narrow_model"}, r"\(2, 2\).*it gave \(2, 7\)"),
        ({"model": "no_such"}, "has no function .no_such.; it has: make_model, "),
        ({"data": "wrong_data"}, "must return .x_train, y_train, x_test, y_test."),
        ({"data": "broken_data"}, r"raised KeyError: 'key' \(.*mine.py, line \d+\)"),
        ({"data": "leaving_data"}, r"raised SystemExit: 3 \(.*mine.py, line \d+\)"),
        ({"model": "leaving_model"}, r"cannot take two samples of .*: SystemExit: 4"),
        (
            {"data": "counted_from_one"},
            "labels must be counted from 0; .* begin at 1. Subtract 1 from both",
        ),
    ],
)
def test_what_the_users_functions_return_is_checked(user_file, tmp_path, quiet, names, message):
    with pytest.raises(ValueError, match=message):
        carry_out(of_users(user_file(USER), **names), tmp_path / "out", console=quiet)
    assert not (tmp_path / "out").exists()
