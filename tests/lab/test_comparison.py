from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from markupsafe import escape

import bouton
from bouton.lab import carry_out, define, rebuild, training
from bouton.lab.arms import arms_of
from bouton.lab.comparison import read_comparison
from bouton.lab.data import digits
from bouton.lab.records import RunResult
from bouton.lab.report.table import make_table
from bouton.lab.runs import RunStore
from bouton.lab.summary import summarise
from bouton.lab.training import train


def test_a_run_survives_the_way_to_disk_and_back(small, tmp_path):
    store, config = RunStore(tmp_path), small.config(small.arms[2], 0)
    assert store.load(config) is None
    carry_out(dataclasses.replace(small, seeds=1), tmp_path)
    result = store.load(config)
    folder = store.directory / config.key
    assert sorted(path.name for path in folder.iterdir()) == [
        "SHA256SUMS", "config.json", "metrics.jsonl", "result.json",
    ]  # fmt: skip
    assert json.loads((folder / "config.json").read_text())["mechanisms"][0]["name"] == "Grapes"
    assert len(result.epochs) == small.epochs and result.status == "finished"
    # The first of two processes wins; only a failed run gives way.
    store.save(config, RunResult(status="failed", error="late"))
    assert store.load(config) == result
    other = small.config(small.arms[2], 7)
    store.save(other, RunResult(status="failed", error="x"))
    store.save(other, result)
    assert store.load(other) == result


def test_the_report_from_the_folder_equals_the_original(small, tmp_path, quiet):
    original = make_table(carry_out(small, tmp_path, console=quiet))
    page = (tmp_path / "report.html").read_text()
    (tmp_path / "report.html").unlink()
    assert make_table(rebuild(tmp_path, console=quiet)) == original
    assert (tmp_path / "report.html").read_text() == page
    assert read_comparison(tmp_path) == small


def test_an_unfinished_sweep_says_so(small, tmp_path, quiet):
    carry_out(dataclasses.replace(small, seeds=1), tmp_path, console=quiet)
    summary = summarise(small, small.results(RunStore(tmp_path)))
    assert summary.missing == 6
    assert "6 runs not made yet" in make_table(summary).notes[0]


def test_a_sweep_goes_on_after_divergence_and_shows_it(tmp_path, quiet):
    comparison = define(data="digits", mechanisms=["Grapes"], seeds=2, epochs=1, lr=1e6)
    summary = carry_out(comparison, tmp_path, console=quiet)
    assert [arm.count("diverged") for arm in summary.arms] == [2, 2, 2]
    assert "unstable: diverged with 2 of 2 seeds" in quiet.file.getvalue()
    assert "diverged" in (tmp_path / "report.html").read_text()


def test_a_remodeling_that_never_came_is_no_finding(small, tmp_path, quiet):
    arms = arms_of(["SpineRemodeling", "SpineRemodeling(every=10)"])
    summary = carry_out(dataclasses.replace(small, arms=tuple(arms)), tmp_path, console=quiet)
    never, often = (arm.verdict for arm in summary.arms[2:])
    assert never.startswith("no difference at all") and "SpineRemodeling had no event" in never
    assert "no event" not in often


ONE_LAYER = """
import torch

model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))

def make_model():
    return model
"""


def of_one_layer(file: str):
    names = {"data": "digits", "model": f"{file}:make_model", "mechanisms": ["PlasticityDiversity"]}
    return define(**names, epochs=1, seeds=1)


def test_a_model_that_is_returned_twice_starts_afresh_each_time(user_file):
    comparison = of_one_layer(user_file(ONE_LAYER))
    config = comparison.config(comparison.arms[0], 0)
    assert train(config).epochs[0].test_accuracy == train(config).epochs[0].test_accuracy


def test_without_anything_to_match_there_is_no_matched_control(user_file, tmp_path, quiet):
    summary = carry_out(of_one_layer(user_file(ONE_LAYER)), tmp_path / "out", console=quiet)
    assert [name for name, _ in summary.comparison.left_out] == ["plain-matched"]
    assert [arm.name for arm in summary.arms] == ["plain", "PlasticityDiversity"]
    assert all(run.status == "finished" for arm in summary.arms for run in arm.runs)


def test_mechanisms_that_cannot_act_on_the_model_are_named_with_the_reason(user_file, tmp_path, quiet):
    whole = dataclasses.replace(of_one_layer(user_file(ONE_LAYER)), arms=tuple(arms_of([])))
    summary = carry_out(whole, tmp_path / "out", console=quiet)
    left_out = dict(summary.comparison.left_out)
    assert {"plain-matched", "Grapes", "MultiSynapse"} <= left_out.keys()
    compared = [arm.name for arm in summary.arms]
    assert "PlasticityDiversity" in compared
    assert sorted([*compared, *left_out]) == sorted(["plain", "plain-matched", *bouton.registry()])
    assert "1.weight: the read-out is never modulated" in left_out["Grapes"]
    assert read_comparison(tmp_path / "out") == summary.comparison
    terminal = " ".join(quiet.file.getvalue().split())
    page = (tmp_path / "out" / "report.html").read_text()
    for name, reason in left_out.items():
        assert f"{name}: left out: {reason}" in terminal
        assert f"<b>{name}</b>: left out: {escape(reason)}" in page


def test_a_mechanism_that_was_asked_for_is_never_left_out(user_file, tmp_path, quiet):
    comparison = dataclasses.replace(of_one_layer(user_file(ONE_LAYER)), arms=tuple(arms_of(["Grapes"])))
    summary = carry_out(comparison, tmp_path / "out", console=quiet)
    assert [arm.name for arm in summary.arms] == ["plain", "Grapes"]
    assert "failed with 1 of 1 seeds: ValueError: Grapes" in summary.arms[1].verdict


NO_LAYER = """
import torch

class Bare(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(10))
    def forward(self, x):
        return x.flatten(1)[:, :10] * self.scale
"""


def test_a_model_on_which_nothing_can_act_is_refused(user_file, tmp_path, quiet):
    comparison = define(data="digits", model=f"{user_file(NO_LAYER)}:Bare")
    with pytest.raises(
        ValueError, match=r"no mechanism can act on the model .*Bare; one reason of .* 1 Bare"
    ):
        carry_out(comparison, tmp_path / "out", console=quiet)
    assert not (tmp_path / "out").exists()


def test_fewer_samples_are_another_run_and_all_of_them_the_run_of_old(small):
    few = dataclasses.replace(small, samples=100)
    arm = small.arms[0]
    assert few.config(arm, 0).key != small.config(arm, 0).key
    assert few.config(arm, 0).key != dataclasses.replace(few, samples=99).config(arm, 0).key
    assert "samples" not in small.config(arm, 0).to_dict()
    assert few.config(arm, 0).to_dict()["samples"] == 100


def test_a_run_on_fewer_samples_sees_the_first_ones_and_the_whole_test_split(small, monkeypatch):
    seen = []
    original = training._one_epoch

    def one_epoch(model, optimizer, dataset, batches, number):
        batches = list(batches)
        seen.append((dataset, torch.cat(batches)))
        return original(model, optimizer, dataset, batches, number)

    monkeypatch.setattr(training, "_one_epoch", one_epoch)
    few = dataclasses.replace(small, samples=100)
    assert train(few.config(few.arms[0], 0)).epochs[-1].step == 2 * 2
    dataset, batches = seen[0]
    assert torch.equal(dataset.x_train, digits().first(100).x_train)
    assert torch.equal(dataset.x_test, digits().x_test)
    assert sorted(batches.tolist()) == list(range(100))


def test_fewer_samples_are_told_by_terminal_and_page(small, tmp_path, quiet):
    few = dataclasses.replace(small, samples=100, seeds=1)
    assert (
        "mlp on digits (100 training samples): "
        in make_table(carry_out(few, tmp_path, console=quiet)).title
    )
    assert "mlp on digits (100 training samples)" in quiet.file.getvalue()
    page = (tmp_path / "report.html").read_text()
    assert "mlp on digits (100 training samples)" in page
    assert "<dt>training samples</dt><dd>100</dd>" in page
    assert read_comparison(tmp_path) == few


@pytest.mark.parametrize("model", ["rnn", "lstm", "transformer", "snn", "resnet9"])
def test_each_model_runs_with_every_mechanism_that_can_act_on_it(model, tmp_path, quiet):
    comparison = define(data="digits", model=model, samples=130, seeds=1, epochs=1)
    summary = carry_out(comparison, tmp_path, console=quiet)
    assert {"plain", "plain-matched", "Grapes"} <= {arm.name for arm in summary.arms}
    for arm in summary.arms:
        assert arm.count("finished") == 1, arm.verdict
    assert summary.arms[1].lr > 0.01  # matched to a mean factor between 1 and 2
