"""Numbers of memory against a count by hand; records, tables and the page that shows them."""

from __future__ import annotations

import dataclasses
import io
import itertools
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

import bouton
from bouton.lab.bench import ARMS, Effort, Setting, measure, named, read_records, write_records
from bouton.lab.bench.estimate import Estimate
from bouton.lab.bench.growth import growth_table, heavier, trend, wider
from bouton.lab.bench.measurement import attach
from bouton.lab.bench.memory import footprint
from bouton.lab.bench.nets import perceptron
from bouton.lab.bench.page import fill
from bouton.lab.bench.record import ArmRecord, Measured, Record, Timed
from bouton.lab.bench.table import make_table, markdown
from bouton.lab.bench.terminal import print_table
from bouton.lab.bench.timing import Pairs
from bouton.lab.bench.workloads import WORKLOADS, Training, Workload, labelled

ROOT = Path(__file__).parent.parent.parent
TINY = Workload(
    name="tiny", summary="MLP 50-40-10", build=partial(perceptron, 50, 40, 10),
    draw=partial(labelled, (50,), 10), batch_size=4, optimizer="sgd", lr=0.01,
)  # fmt: skip
FAST = Setting(effort=Effort(seconds=1e-9, least_pairs=4, block=1e-9, warm_up=1))
PLAIN = ARMS[0]


def arm(*mechanisms, **others):
    return dataclasses.replace(PLAIN, name="arm", mechanisms=mechanisms, **others)


def measured(*mechanisms, workload=TINY, **others):
    return measure(workload, [arm(*mechanisms)], FAST, **others).arms[0]


class Linear:
    """One step of a linear layer without bias, whose every tensor is known."""

    def __init__(self, temporary: int) -> None:
        self.temporary = temporary

    def __call__(self) -> Training:
        layer = nn.Linear(1000, 1, bias=False)
        training = Training(
            layer,
            torch.optim.SGD(layer.parameters(), lr=0.1),
            (torch.zeros(2, 1000), torch.zeros(2).long()),
        )

        def between() -> None:
            torch.zeros(self.temporary)

        training.between = between
        return training


def test_memory_is_what_tensors_take():
    small, large = footprint(Linear(10_000)), footprint(Linear(60_000))
    # weight and gradient of 1000 numbers, two inputs of 1000, two labels
    assert small.held == large.held == 4 * (1000 + 1000 + 2000) + 2 * 8
    output = 4 * 2
    assert small.peak == small.held + output + 4 * 10_000
    assert large.peak == large.held + output + 4 * 60_000


def test_the_weights_of_a_training_are_all_that_is_held():
    parameters = sum(p.numel() for p in TINY.build().parameters())
    batch = 4 * 4 * 50 + 8 * 4
    assert footprint(TINY.start).held == 2 * 4 * parameters + batch
    momentum = dataclasses.replace(TINY, optimizer="momentum")
    assert footprint(momentum.start).held == 3 * 4 * parameters + batch


def test_state_and_peak_are_per_weight_that_is_taken():
    static = measured(bouton.PlasticityDiversity(where="0")).measured
    training = TINY.start()
    handle = bouton.attach(training.model, training.optimizer, [bouton.PlasticityDiversity(where="0")])
    claims = handle.state_dict()["claims"].values()
    tensors = [t for claim in claims for block in claim["tensors"] for t in block.values()]
    kept = sum(t.numel() * t.element_size() for t in tensors)
    assert static.weights == 50 * 40
    assert static.state == pytest.approx(kept / static.weights, abs=0.1)
    assert static.peak >= static.state
    # of several mechanisms on one weight, the weight counts once
    both = attach(TINY.start(), [bouton.PlasticityDiversity(where="0"), bouton.SpineRemodeling()])
    assert both == 50 * 40 + 40 * 10


def test_all_that_is_allocated_in_events_counts():
    """Events that are rare are not left out of the peak."""
    rare, each = (measured(bouton.SpineRemodeling(every=every)).measured for every in (1000, 1))
    assert rare.peak == each.peak > 0


@pytest.mark.parametrize(
    ("name", "parameters"), [("mlp", 269_322), ("resnet18", 11_173_962), ("transformer", 3_323_392)]
)
def test_the_built_in_workloads(name, parameters):
    before = torch.get_rng_state()
    first = WORKLOADS[name].start()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)  # others draw, too
    second = WORKLOADS[name].start()
    assert sum(p.numel() for p in first.model.parameters()) == parameters
    first.step(), second.step()
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in first.model.parameters())


def test_the_residual_net_halves_its_images_three_times():
    model = WORKLOADS["resnet18"].start().model.eval()
    shapes, x = [], torch.zeros(1, 64, 32, 32)
    for block in model.blocks:
        x = block(x)
        shapes.append(tuple(x.shape[1:3]))
    expected = [(64, 32), (128, 16), (256, 8), (512, 4)]
    assert shapes == [shape for shape in expected for _ in range(2)]


def test_a_decoder_cannot_see_what_comes():
    model = WORKLOADS["transformer"].start().model
    tokens = torch.randint(256, (1, 20))
    changed = tokens.clone()
    changed[0, 12:] = 3
    same = (model(tokens) - model(changed)).abs().amax((0, 2)) < 1e-4
    assert same[:12].all() and not same[12:].any()


def test_short_floats_reach_weights_and_inputs():
    training = TINY.start(dtype=torch.bfloat16)
    training.step()
    assert {p.dtype for p in training.model.parameters()} == {torch.bfloat16}


def test_every_arm_can_be_had_on_a_small_net():
    record = measure(TINY, ARMS, FAST)
    assert [arm.name for arm in record.arms] == [arm.name for arm in ARMS]
    for arm in record.arms:
        assert arm.measured.failed is None and arm.budget is None
        assert all(len(part.ratios) >= 4 for part in arm.measured.parts)
        assert arm.measured.ratio.low <= arm.measured.ratio.median <= arm.measured.ratio.high
        assert (arm.measured.state is None) == (arm.measured.weights == 0) == (arm.name == PLAIN.name)


def test_what_cannot_be_attached_is_recorded_with_the_reason():
    found = measured(bouton.MultiSynapse(gamma=3))
    assert "MultiSynapse" in found.measured.failed and found.measured.ratio is None and found.met is None


def test_what_is_measured_beside_may_fail_in_its_own_way():
    def converting(training):
        raise IndexError("of older code")

    def quick(training):
        training.between = lambda: None
        return 7

    assert measured(other={"arm": converting}).other.failed == "IndexError: of older code"
    assert measured(other={"arm": quick}).other.weights == 7
    assert measured(other={"another arm": quick}).other is None


def test_the_first_of_each_two_copies_is_the_plain_one(monkeypatch):
    order = []

    def looking(copies, clock, effort, weight):
        for _ in range(4):
            plain, attached = copies()
            order.append((plain.__self__.equipped, attached.__self__.equipped))
            order[-1] += ("plain",) if plain.__self__.made < attached.__self__.made else ("attached",)
        return Pairs(steps=1, plain=[1.0, 1.0], ratios=[1.0, 1.0])

    def equip(training):
        training.equipped = True
        return 1

    numbers = itertools.count()
    start = Workload.start

    def numbered(*arguments):
        training = start(*arguments)
        training.equipped, training.made = False, next(numbers)
        return training

    monkeypatch.setattr("bouton.lab.bench.measurement.time_pairs", looking)
    monkeypatch.setattr(Workload, "start", numbered)
    assert measured(other={"arm": equip}).other.failed is None
    assert order[4:] == [(False, True, "plain"), (False, True, "attached")] * 2


def row(name="some arm", ratio=None, **others):
    part = Timed(name="all steps", weight=1.0, steps=3, plain_ms=1.5, ratios=(1.0, 1.1))
    return ArmRecord(
        name=name, mechanisms=({"name": "Grapes", "clip": [1.0, 2.0]},),
        measured=Measured(parts=(part,), ratio=ratio, weights=10, state=4.0, peak=8.0), **others,
    )  # fmt: skip


def record(*rows, **others):
    values = {
        "workload": "tiny", "summary": "MLP", "parameters": 2450, "device": "cpu", "dtype": "float32",
        "threads": 2, "seconds": 8.0, "precision": 0.01, "command": "bouton bench",
        "machine": {"processor": "Some CPU", "cores": 2, "memory_gib": 4}, "arms": rows,
    }  # fmt: skip
    return Record(**{**values, **others})


@pytest.mark.parametrize(
    ("median", "budget", "met", "cell"),
    [
        (1.10, 1.10, True, "1.10, met"),
        (1.1001, 1.10, False, "1.10, not met"),
        (0.9, 1.10, True, "1.10, met"),
        (1.5, None, None, "-"),
    ],
)
def test_a_budget_is_met_by_a_median_at_or_below_it(median, budget, met, cell):
    one = row(ratio=Estimate(median=median, low=0.8, high=2.0), budget=budget)
    other = row(name="other", budget=2.0)
    assert one.met is met
    assert make_table(record(one, other)).rows[0][2] == cell


def test_a_record_comes_back_from_its_file(tmp_path):
    failing = dataclasses.replace(
        row("fails"), measured=Measured(failed="ValueError: no"), other=Measured()
    )
    records = [record(row(ratio=Estimate(median=1.1, low=1.0, high=1.2)), failing), record()]
    write_records(tmp_path / "new" / "result.json", records)
    assert read_records(tmp_path / "new" / "result.json") == records
    (tmp_path / "bad.json").write_text('[{"workload": 1}]')
    for name in ("bad.json", "none.json"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as a benchmark's result"):
            read_records(tmp_path / name)


def test_the_table_shows_ratio_interval_memory_and_failures():
    older = row(ratio=Estimate(median=3.5, low=3.4, high=3.61234))
    one = row(ratio=Estimate(median=1.1, low=1.0, high=1.2), other=older.measured, budget=1.15)
    failing = dataclasses.replace(row("bad arm"), measured=Measured(failed="ValueError: a\nb"))
    table = make_table(record(one, failing, other="older package"))
    assert table.headers[-1] == "older package"
    cells = ("some arm", "1.100 [1.000, 1.200]", "1.15, met", "4.0", "8.0", "3.500 [3.400, 3.612]")
    assert table.rows == (cells, ("bad arm", "fails", "-", "-", "-", "-"))
    text = markdown(table)
    assert f"| {' | '.join(cells)} |" in text.splitlines()
    assert "- bad arm: `ValueError: a b`" in text.splitlines()
    assert "Some CPU, 2 cores" in text and "2 threads" in text and "1.5 ms for a plain step" in text
    assert "budget" not in make_table(record(row())).headers  # nothing would stand there
    console = Console(file=io.StringIO(), width=80)
    print_table(console, table)
    shown = console.file.getvalue()
    assert all(len(line) <= 80 for line in shown.splitlines())
    for piece in ("1.100", "[1.000,1.200]", "bad arm: ValueError: a"):
        assert piece in shown


def test_the_trend_is_that_of_the_ratios():
    sizes = [1e6, 1e7, 1e8, 1e9]
    line = trend(sizes, [1.4, 1.3, 1.2, 1.1])
    assert line.slope == pytest.approx(-0.1) and line.verdict == "falls"
    assert trend(sizes, [1.1, 1.2, 1.3, 1.4]).verdict == "rises"
    unclear = trend(sizes, [1.1, 1.3, 1.0, 1.2])
    assert unclear.low < 0 < unclear.high and unclear.verdict == "no rise seen"
    # three points, t(1) = 12.706: by hand, slope 0.05, residuals -1/60, 1/30, -1/60 around it
    three = trend([1e6, 1e7, 1e8], [1.0, 1.1, 1.1])
    assert three.slope == pytest.approx(0.05)
    assert three.high - three.slope == pytest.approx(12.7062 * (6 / 3600 / 2) ** 0.5, rel=1e-4)


def test_growth_is_a_table_of_all_sizes():
    records = [
        record(row(ratio=Estimate(median=ratio, low=1, high=2)), parameters=size, workload=f"w{size}")
        for size, ratio in ((10**6, 1.4), (10**7, 1.3), (10**8, 1.2))
    ]
    table = growth_table(records)
    assert table.headers[1:4] == ("w1000000", "w10000000", "w100000000")
    assert table.rows[0][:2] == ("plain step, ms", "1.5")
    assert table.rows[1] == ("some arm", "1.400", "1.300", "1.200", "-0.100 [-0.100, -0.100]", "falls")
    failing = record(dataclasses.replace(row(), measured=Measured(failed="no")), workload="none")
    assert growth_table([*records[:2], failing]).rows[1][3:] == ("fails", "-", "-")


def test_growing_models_have_the_sizes_that_their_names_say():
    widths = [w.build for w in wider()[:2]]
    assert [build()[0].out_features for build in widths] == [256, 512]
    for workload in heavier()[:3]:
        count = sum(p.numel() for p in workload.build().parameters())
        assert count == pytest.approx(1e6 * float(workload.name.split()[0]), rel=0.1)


def test_named_workloads_take_other_settings():
    assert (
        named("mlp", batch_size=7, lr=None, optimizer="adam")
        .describe()
        .endswith("batch 7, adam, learning rate 0.01")
    )


def test_the_page_has_what_the_files_say(tmp_path):
    write_records(tmp_path / "a.json", [record(row(), summary="one"), record(summary="two")])
    page = "Before.\n<!-- tables: a.json -->\nold\n<!-- end -->\nAfter.\n"
    filled = fill(page, tmp_path)
    assert filled.startswith("Before.\n<!-- tables: a.json -->\none, ")
    assert "\ntwo, " in filled and "old" not in filled and filled.endswith("<!-- end -->\nAfter.\n")
    assert fill(filled, tmp_path) == filled


def test_the_tables_of_the_page_are_those_of_the_committed_results():
    page = (ROOT / "docs" / "speed.md").read_text()
    results = ROOT / "benchmarks" / "results"
    assert fill(page, results) == page, "type: python benchmarks/write_tables.py"
    for file in results.glob("*.json"):
        assert f": {file.name} -->" in page
