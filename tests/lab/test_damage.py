"""Damaged files are named, with what to do; nothing wrong is ever taken for a result."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path

import pytest
from damages import COMPARISON, DAMAGES, KEY, PLACES
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from bouton.cli import main
from bouton.lab import FolderError, carry_out, rebuild
from bouton.lab.comparison import FILE, read_comparison
from bouton.lab.report.figures import make_figures
from bouton.lab.report.table import make_table
from bouton.lab.report.terminal import print_table
from bouton.lab.runs import CONFIG, METRICS, RESULT, SUMS, RunStore
from bouton.lab.summary import summarise

OLD = Path(__file__).parents[2] / "results" / "fashion-mnist-mlp"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "sweep"
    carry_out(COMPARISON, folder, console=Console(file=io.StringIO()))
    return folder


@pytest.fixture
def sweep(made, tmp_path) -> Path:
    """A finished sweep of one's own, to be damaged."""
    return shutil.copytree(made, tmp_path / "sweep", ignore=shutil.ignore_patterns("*.html"))


def refused(folder: Path, name: str, quiet: Console) -> None:
    """The error names the file, or the run's folder and the file in it, and says what to delete."""
    with pytest.raises(ValueError) as caught:
        rebuild(folder, console=quiet)
    message = str(caught.value)
    if name == FILE:
        assert f"{folder / FILE} cannot be read" in message and "delete it and type the command" in message
    else:
        assert f"the run in {folder / 'runs' / KEY} cannot be read ({name}: " in message
        assert "delete that folder and type the command that started the sweep" in message


@pytest.mark.parametrize(
    ("name", "damage"), [(n, d) for n, _, d in DAMAGES], ids=[f"{n} {kind}" for n, kind, _ in DAMAGES]
)
def test_each_damage_is_found(name, damage, sweep, quiet):
    """Without the sums where they are not the damaged file: each file is checked for what it says."""
    if name != SUMS:
        (sweep / PLACES[SUMS]).unlink()
    damage(sweep / PLACES[name])
    refused(sweep, name, quiet)


@pytest.mark.parametrize("name", [CONFIG, METRICS, RESULT])
def test_a_missing_file_is_found(name, sweep, quiet):
    (sweep / PLACES[name]).unlink()
    refused(sweep, name, quiet)


@pytest.mark.parametrize("left", [0, 1])
def test_missing_epochs_are_found(left, sweep, quiet):
    (sweep / PLACES[SUMS]).unlink()
    metrics = sweep / PLACES[METRICS]
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:left]))
    refused(sweep, RESULT, quiet)


@given(st.sampled_from([CONFIG, METRICS, RESULT]), st.integers(0), st.integers(0, 7))
def test_each_changed_bit_is_found(made, name, place, bit):
    path = made / PLACES[name]
    right = path.read_bytes()
    changed = bytearray(right)
    changed[place % len(right)] ^= 1 << bit
    store, config = RunStore(made), COMPARISON.config(COMPARISON.arms[2], 1)
    path.write_bytes(changed)
    try:
        with pytest.raises(ValueError, match=f"{name} is not what was written"):
            store.load(config)
    finally:
        path.write_bytes(right)
    assert store.load(config) is not None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def changed(value, draw):
    """One value somewhere in it, or the whole, is another."""
    if value and isinstance(value, dict | list) and draw(st.integers(0, 4)):
        copy = value.copy()
        key = draw(st.sampled_from(list(value) if isinstance(value, dict) else range(len(value))))
        copy[key] = changed(value[key], draw)
        return copy
    return draw(JSON)


@given(st.data())
def test_whatever_a_file_says_it_is_refused_or_shown(made, data):
    """Never another error, and never an endless loop: a report of it can be made."""
    name = data.draw(st.sampled_from([FILE, METRICS, RESULT]))
    path, sums = made / PLACES[name], made / PLACES[SUMS]
    right, right_sums = path.read_text(), sums.read_text()
    first, *others = right.splitlines() if name == METRICS else [right]
    wrong = "\n".join([json.dumps(changed(json.loads(first), data.draw)), *others])
    path.write_text(wrong)
    sums.unlink()
    try:
        comparison = read_comparison(made)
        summary = summarise(comparison, comparison.results(RunStore(made)))
    except ValueError:
        pass
    else:
        make_figures(summary)
        print_table(Console(file=io.StringIO()), make_table(summary))
    finally:
        path.write_text(right)
        sums.write_text(right_sums)


@pytest.mark.parametrize("name", [FILE, RESULT])
def test_the_commands_name_it_in_one_line_and_what_they_say_helps(name, sweep, capsys):
    (sweep / PLACES[name]).write_text("{")
    typed = ["compare", "--data", "digits", "--samples", "64", "--mechanisms", "Grapes", "--epochs", "2"]
    again = [*typed, "--seeds", "2", "--out", str(sweep)]
    for command in (["report", str(sweep)], again):
        assert main(command) == 2
        ended = capsys.readouterr()
        assert name in ended.err and "delete" in ended.err and ended.err.count("\n") == 1
        assert "seed 0" not in ended.out, "found only after other runs"
    if name == FILE:
        (sweep / FILE).unlink()
    else:
        shutil.rmtree((sweep / PLACES[name]).parent)
    assert main(again) == 0
    assert capsys.readouterr().out.count("(made before)") == (6 if name == FILE else 5)


def test_a_file_in_a_runs_place_is_found(sweep, quiet):
    shutil.rmtree(sweep / "runs" / KEY)
    (sweep / "runs" / KEY).touch()
    refused(sweep, CONFIG, quiet)


def test_runs_from_before_there_were_sums_are_read(quiet, tmp_path):
    sweep = shutil.copytree(OLD, tmp_path / "old")
    for sums in sweep.rglob(SUMS):
        sums.unlink()
    assert make_table(rebuild(sweep, console=quiet)).rows[0][2].startswith("84.57")


def test_a_failed_run_that_is_replaced_while_it_is_read_is_no_damage(sweep, monkeypatch):
    """The files of a run that another process is replacing are gone for a moment, or of two runs."""
    store, config = RunStore(sweep), COMPARISON.config(COMPARISON.arms[2], 1)
    right = store.load(config)
    folder = sweep / "runs" / KEY
    folder.rename(sweep / "new")
    folder.mkdir()  # half of the old one
    read = Path.read_bytes

    def and_meanwhile(path: Path) -> bytes:
        if (sweep / "new").exists():
            folder.rmdir()
            (sweep / "new").rename(folder)
            raise FileNotFoundError(2, "gone", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", and_meanwhile)
    assert store.load(config) == right


def test_a_full_disk_at_the_report_is_no_damage(sweep, quiet, monkeypatch):
    monkeypatch.setattr("bouton.lab.folder.write", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(FolderError, match="the disk is full"):
        rebuild(sweep, console=quiet)
    assert dataclasses.replace(read_comparison(sweep), command="") == COMPARISON
