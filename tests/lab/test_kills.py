"""A sweep that is killed or interrupted, anywhere, loses no finished run and counts none twice."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from lab_commands import SMALL, Fault, Fork, end, fork, is_free, left_behind, runs, start, wait_until, whole

from bouton.lab import define
from bouton.lab.comparison import keep_comparison
from bouton.lab.records import RunConfig, RunResult
from bouton.lab.runs import RunStore

SWEEP = [*SMALL[:-1], "40", "--seeds", "5"]  # 15 runs of a tenth of a second
ENDLESS = [*SMALL[:-1], "100000", "--seeds", "1"]


def test_a_sweep_killed_half_way_repeats_and_loses_nothing(tmp_path):
    """The real command, killed; and again, politely."""
    command, logs = [*SWEEP, "--out", tmp_path], tmp_path / "logs"
    process = start(command)
    wait_until(lambda: len(runs(tmp_path)) > 1)
    process.send_signal(signal.SIGKILL)
    assert end(process).code == -signal.SIGKILL
    first = runs(tmp_path)
    process = Fork(command, logs)
    wait_until(lambda: len(runs(tmp_path)) > len(first) + 1)
    process.send(signal.SIGTERM)
    assert process.end().code == -signal.SIGTERM
    second = runs(tmp_path)
    assert len(whole(tmp_path)) == len(second) < 15, "it must die half-way for this test to mean something"
    again = fork(command, logs)
    assert again.code == 0 and again.out.count("(made before)") == len(second)
    assert first.items() < second.items() < runs(tmp_path).items(), "a finished run was made again"
    assert len(whole(tmp_path)) == 15


def one_failed(folder: Path) -> None:
    """A folder in which one run has failed: the next start must put another in its place."""
    comparison = define(data="digits", samples=64, mechanisms=["Grapes"], epochs=1, seeds=2)
    keep_comparison(folder, comparison)
    RunStore(folder).save(comparison.config(comparison.arms[1], 0), RunResult(status="failed", error="x"))


@pytest.mark.parametrize(("kind", "code"), [("kill", -9), ("interrupt", 130)])
def test_wherever_it_stops_the_next_start_goes_on(kind, code, tmp_path):
    """Each start is stopped a little later: while reading, locking, training, saving, reporting."""
    folder, logs = tmp_path / "out", tmp_path / "logs"
    one_failed(folder)
    finished: dict[str, dict[str, bytes]] = {}
    for at in range(1, 200, 6):
        ended = fork([*SMALL, "--seeds", "2", "--out", folder], logs, Fault(kind, at, folder))
        there = runs(folder)
        done = [key for key, files in there.items() if b'"status": "finished"' in files["result.json"]]
        assert all(there[key] == files for key, files in finished.items()), "a finished run was made again"
        assert len(whole(folder)) == len(there) <= 6
        finished = {key: there[key] for key in done}
        if ended.code == 0:
            break
        assert ended.code == code
        if kind == "interrupt":
            assert ended.err.strip() == "bouton: stopped. The same command goes on where it was."
    assert ended.code == 0 and at > 50 and len(finished) == 6
    final = fork([*SMALL, "--seeds", "2", "--out", folder], logs)
    assert final.out.count("(made before)") == 6 and runs(folder) == finished


def claimed(folder: Path) -> list[RunConfig]:
    """What a process of `ENDLESS` makes. Looks only where a lock is: to look at a free one takes it."""
    endless = define(data="digits", samples=64, mechanisms=["Grapes"], epochs=100_000, seeds=1)
    configs, store = [endless.config(arm, 0) for arm in endless.arms], RunStore(folder)
    locked = [config for config in configs if (store.directory / f".lock-{config.key}").exists()]
    return [config for config in locked if not is_free(store, config)]


def test_ctrl_c_is_one_line_and_exit_code_130(tmp_path):
    """The real command, interrupted while it trains."""
    process = start([*ENDLESS, "--out", tmp_path])
    wait_until(lambda: claimed(tmp_path))
    process.send_signal(signal.SIGINT)
    ended = end(process)
    assert ended.code == 130
    assert ended.err.strip() == "bouton: stopped. The same command goes on where it was."
    assert not runs(tmp_path) and not left_behind(tmp_path)


def test_leftovers_of_killed_processes_are_removed_after_a_while(tmp_path):
    old, new = tmp_path / "runs" / ".partial-old", tmp_path / "runs" / ".partial-new"
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{")
    os.utime(old, (0, 0))
    lock = tmp_path / "runs" / ".lock-of-a-killed-process"
    lock.touch()
    RunStore(tmp_path).prepare()
    assert not old.exists() and new.exists() and not lock.exists()


def test_the_claim_of_a_killed_process_is_free(tmp_path):
    sweep = Fork([*ENDLESS, "--out", tmp_path], tmp_path / "logs")
    wait_until(lambda: claimed(tmp_path))
    (config,) = claimed(tmp_path)
    sweep.send(signal.SIGKILL)
    assert sweep.end().code == -signal.SIGKILL
    assert is_free(RunStore(tmp_path), config)
