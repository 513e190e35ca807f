"""Several processes on one folder share its runs; a folder never holds two comparisons."""

from __future__ import annotations

import dataclasses
import json

import pytest
from lab_commands import SMALL, Fork, fork, runs, wait_until, whole

import bouton
from bouton.lab import carry_out, define
from bouton.lab.arms import arms_of
from bouton.lab.comparison import keep_comparison, read_comparison
from bouton.lab.records import RunResult
from bouton.lab.runs import RunStore
from bouton.lab.training import train


def lines(out: str) -> tuple[list[str], list[str]]:
    """Of a sweep's output, the runs that it made and those that it found."""
    told = [line for line in out.splitlines() if line.startswith("seed ") and "━" not in line]
    found = [line.split()[1:3] for line in told if line.endswith("(made before)")]
    made = [line.split()[1:3] for line in told if not line.endswith("(made before)")]
    return [" ".join(run) for run in made], [" ".join(run) for run in found]


def test_processes_on_one_folder_make_each_run_once(tmp_path):
    command = [*SMALL[:-1], "100", "--seeds", "4", "--out", tmp_path / "out"]
    processes = [Fork(command, tmp_path / f"logs-{number}") for number in range(4)]
    ended = [process.end() for process in processes]
    assert [one.code for one in ended] == [0] * 4, ended
    made = [lines(one.out)[0] for one in ended]
    everything = [run for one in made for run in one]
    assert len(everything) == len(set(everything)) == 12 == len(whole(tmp_path / "out"))
    assert sum(map(bool, made)) > 1, "one process did all the work"
    for one in ended:
        assert sorted(run for part in lines(one.out) for run in part) == sorted(everything)
        assert one.out.count("mlp on digits") == 1 and "Not complete" not in one.out
    tables = {one.out[one.out.index("mlp on digits") :] for one in ended}
    assert len(tables) == 1, "the processes end with different tables"


def of_three_runs():
    comparison = define(data="digits", samples=64, mechanisms=["Grapes"], epochs=1, seeds=1)
    return comparison, [comparison.config(arm, 0) for arm in comparison.arms]


@pytest.mark.parametrize("status", ["finished", "failed"])
def test_a_run_that_another_process_makes_is_waited_for(status, tmp_path):
    (_, (first, *_)), store = of_three_runs(), RunStore(tmp_path)
    with store.claim(first):
        sweep = Fork([*SMALL, "--seeds", "1", "--out", tmp_path], tmp_path / "logs")
        wait_until(lambda: sweep.out.count("seed 0") == 2)  # it makes the other two meanwhile
        result = train(first) if status == "finished" else RunResult(status="failed", error="gone wrong")
        store.save(first, result)
    ended = sweep.end()
    made, found = lines(ended.out)
    assert ended.code == (0 if status == "finished" else 1)
    assert len(made) == 2 and len(found) == 1, "a run that was just made, or failed, was made again"
    assert store.load(first) == result


def test_a_run_that_another_process_gives_up_is_made(tmp_path):
    """As the system gives a dead process's claim back (test_the_claim_of_a_killed_process_is_free)."""
    (_, (first, *_)), store = of_three_runs(), RunStore(tmp_path)
    with store.claim(first):
        sweep = Fork([*SMALL, "--seeds", "1", "--out", tmp_path], tmp_path / "logs")
        wait_until(lambda: sweep.out.count("seed 0") == 2)
        assert len(runs(tmp_path)) == 2
    assert sweep.end().code == 0 and len(lines(sweep.out)[0]) == 3
    assert store.load(first).status == "finished"


def test_a_run_made_between_the_look_and_the_claim_is_not_made_again(tmp_path, quiet, monkeypatch):
    comparison, (first, *_) = of_three_runs()
    result, claim = train(first), RunStore.claim

    def claim_late(store, config):
        if config == first:
            store.save(first, result)  # by another process
        return claim(store, config)

    monkeypatch.setattr(RunStore, "claim", claim_late)
    carry_out(comparison, tmp_path, console=quiet)
    made, found = lines(quiet.file.getvalue())
    assert len(made) == 2 and len(found) == 1 and RunStore(tmp_path).load(first) == result


def test_of_two_different_comparisons_at_once_one_is_refused(tmp_path):
    folder = tmp_path / "out"
    processes = [
        Fork([*SMALL, "--seeds", "1", "--lr", lr, "--out", folder], tmp_path / f"logs-{lr}")
        for lr in (0.1, 0.2)
    ]
    ended = sorted((process.end() for process in processes), key=lambda one: one.code)
    assert [one.code for one in ended] == [0, 2]
    assert ended[0].out.count("mlp on digits") == 1 and len(whole(folder)) == 3 == len(runs(folder))
    assert "holds another comparison: lr is 0." in ended[1].err and ended[1].err.count("\n") == 1


@pytest.fixture
def kept(tmp_path):
    """A folder and the comparison in it."""
    comparison = define(data="digits", samples=64, mechanisms=["Grapes"], epochs=1, seeds=2)
    keep_comparison(tmp_path, comparison)
    return tmp_path, comparison


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lr": 0.02}, "lr is 0.01 there and 0.02 here"),
        ({"epochs": 2, "samples": None}, "samples is 64 there and None here; epochs is 1 there and 2 here"),
        ({"seeds": 1}, "seeds is 2 there and 1 here"),
        ({"arms": tuple(arms_of(["MultiSynapse"]))}, "the arm Grapes is there and not here"),
        ({"data": "mnist1d"}, "data is digits there and mnist1d here"),
        ({"model": "rnn"}, "model is mlp there and rnn here"),
    ],
)
def test_another_comparison_is_refused_with_the_difference(kept, change, words):
    folder, comparison = kept
    sources = {
        k: dataclasses.replace(comparison.data, name=v) for k, v in change.items() if k in ("data", "model")
    }
    other = dataclasses.replace(comparison, **(change | sources))
    with pytest.raises(ValueError) as caught:
        keep_comparison(folder, other)
    assert f"{folder} holds another comparison: {words}. Give another folder with --out; or delete" in str(
        caught.value
    )
    assert read_comparison(folder) == comparison
    (folder / "comparison.json").unlink()  # as the message says
    keep_comparison(folder, other)
    assert read_comparison(folder) == other


def test_a_comparison_may_grow_and_its_code_be_edited(kept, user_file):
    folder, comparison = kept
    grown = dataclasses.replace(comparison, seeds=3, arms=tuple(arms_of([])), command="again", version="9")
    keep_comparison(folder, grown)
    assert read_comparison(folder) == grown
    (folder / "comparison.json").unlink()
    text = "def make_model(): pass"
    for edition in (text, text + " # edited"):
        edited = define(data="digits", model=f"{user_file(edition)}:make_model")
        keep_comparison(folder, edited)
        assert read_comparison(folder).model == edited.model


def test_more_seeds_and_arms_go_on_with_the_runs_that_are_there(tmp_path, quiet):
    small = define(data="digits", samples=64, mechanisms=["Grapes"], epochs=1, seeds=1)
    carry_out(small, tmp_path, console=quiet)
    before = runs(tmp_path)
    more = dataclasses.replace(small, seeds=2, arms=tuple(arms_of(["MultiSynapse", "Grapes"])))
    summary = carry_out(more, tmp_path, console=quiet)
    assert len(before) == 3 and len(runs(tmp_path)) == 8 and runs(tmp_path).items() > before.items()
    assert [arm.count("finished") for arm in summary.arms] == [2, 2, 2, 2]
    assert quiet.file.getvalue().count("(made before)") == 3
    assert json.loads((tmp_path / "comparison.json").read_text())["version"] == bouton.__version__


def test_the_same_command_with_less_says_what_to_do(tmp_path):
    command = [*SMALL, "--out", tmp_path / "out", "--seeds"]
    assert fork([*command, "2"], tmp_path / "logs").code == 0
    ended = fork([*command, "1"], tmp_path / "logs")
    assert ended.code == 2 and "seeds is 2 there and 1 here" in ended.err
