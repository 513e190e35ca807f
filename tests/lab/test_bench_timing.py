"""What is timed is paired as promised, whatever the clock says: the clock here is made up."""

from __future__ import annotations

import gc
import random

import pytest

from bouton.lab.bench.arms import ARMS, NEVER, arms_of, parts_of
from bouton.lab.bench.estimate import estimate
from bouton.lab.bench.timing import COPIES, Effort, time_pairs
from bouton.lab.bench.workloads import named


@pytest.fixture(autouse=True)
def _short_looks_for_garbage():
    gc.freeze()  # all that pytest has made
    yield
    gc.unfreeze()


class Machine:
    """A clock by which a step takes what it says, times how slow the machine is by now."""

    def __init__(self, plain=0.01, attached=0.012, drift=0.0, noise=0.0) -> None:
        self.plain, self.attached, self.drift, self.noise = plain, attached, drift, noise
        self.random = random.Random(0)
        self.slow, self.made, self.log = 1.0, 0, []

    def copies(self):
        self.made += 1
        self.log.append("new")
        return self._steps("A", self.plain), self._steps("B", self.attached)

    def _steps(self, name, seconds):
        def steps(number):
            assert not gc.isenabled()
            self.log.append((name, number))
            self.last = number * seconds * self.slow * self.random.uniform(1, 1 + self.noise)
            self.slow += self.drift

        return steps

    def clock(self, steps, number):
        steps(number)
        return self.last


def test_blocks_come_as_a_b_b_a_after_the_warm_up():
    machine = Machine()
    pairs = time_pairs(machine.copies, machine.clock, Effort(seconds=1e-9, least_pairs=8, warm_up=3))
    first = [("A", 3), ("B", 3), ("A", 1), ("A", 3)]  # warm-up, then a block of 0.02 seconds is looked for
    turn = [("A", 3), ("B", 3), ("B", 3), ("A", 3)]
    assert machine.log == ["new", *first, *turn, *turn, "new", ("A", 3), ("B", 3), *turn, *turn]
    assert pairs.steps == 3 and gc.isenabled()
    assert pairs.ratios == [1.2] * 8 and pairs.plain == [0.03] * 8


def test_a_machine_that_slows_down_changes_nothing():
    machine = Machine(drift=0.01)
    pairs = time_pairs(machine.copies, machine.clock, Effort(seconds=1e-9, least_pairs=40))
    assert max(pairs.ratios) > 1.2 > min(pairs.ratios)
    assert estimate([pairs.ratios]).median == pytest.approx(1.2, abs=0.002)
    # where the plain block always came first, all ratios would be too large
    assert sum(ratio > 1.2 for ratio in pairs.ratios) == 20


@pytest.mark.parametrize(("seconds", "most"), [(1.0, 1.4), (5.0, 5.8)])
def test_it_stops_when_the_time_is_used_up(seconds, most):
    machine = Machine(attached=0.011, drift=0.001)
    pairs = time_pairs(machine.copies, machine.clock, Effort(seconds=seconds, precision=1e-9))
    assert (
        seconds <= sum(alone * (1 + r) for alone, r in zip(pairs.plain, pairs.ratios, strict=True)) < most
    )


def test_it_stops_before_that_once_the_interval_is_narrow_and_several_copies_were_seen():
    machine = Machine()
    time_pairs(machine.copies, machine.clock, Effort(seconds=100, precision=0.01))
    assert machine.made == COPIES
    noisy = Machine(noise=0.2)
    pairs = time_pairs(noisy.copies, noisy.clock, Effort(seconds=20, precision=0.035))
    assert noisy.made > COPIES and sum(pairs.plain) < 10
    assert estimate([pairs.ratios]).width <= 0.035


def test_what_counts_for_little_is_known_early():
    machine = Machine(noise=0.2)
    time_pairs(machine.copies, machine.clock, Effort(seconds=20, precision=0.035), weight=0.001)
    assert machine.made == 1


@pytest.mark.parametrize("plain", [3.0, 0.02, 0.004, 1e-5])
def test_a_block_is_long_enough_and_not_much_longer(plain):
    machine = Machine(plain=plain)
    steps = time_pairs(machine.copies, machine.clock, Effort(seconds=1e-9)).steps
    assert steps * plain >= 0.02 - 1e-12
    assert steps == 1 or steps * plain < 0.03


@pytest.mark.parametrize("wrong", [{"seconds": 0}, {"precision": float("nan")}, {"least_pairs": 1}])
def test_an_effort_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Effort(**wrong)


def test_the_interval_is_that_of_the_weighted_medians():
    first, second = [1.0, 1.1, 1.2, 1.3, 1.4], [3.0, 3.0, 5.0]
    whole = estimate([first, second], [0.9, 0.1])
    assert whole.median == pytest.approx(0.9 * 1.2 + 0.1 * 3.0)
    assert whole.low == pytest.approx(0.9 * 1.0 + 0.1 * 3.0, abs=0.1)
    assert whole.low < whole.median < whole.high <= 0.9 * 1.4 + 0.1 * 5.0 + 1e-9
    alone = estimate([first])
    assert (alone.low, alone.high) == (1.0, 1.4) and alone.width == pytest.approx(0.4)


def test_rare_events_are_timed_apart_with_their_share():
    (arm,) = [arm for arm in ARMS if arm.name.startswith("all four")]
    quiet, busy = parts_of(arm.mechanisms)
    assert (quiet.weight, busy.weight) == (0.999, 0.001)
    assert [m.every for m in quiet.mechanisms if m.site == "structure"] == [NEVER]
    assert [m.every for m in busy.mechanisms if m.site == "structure"] == [1]
    assert [type(m) for m in busy.mechanisms] == [type(m) for m in arm.mechanisms]
    assert parts_of(arms_of(["SpineRemodeling(every=20)"])[1].mechanisms)[1].weight == 0.05
    (each,) = parts_of(arms_of(["SpineRemodeling(every=1)"])[1].mechanisms)
    assert each.weight == 1 and each.mechanisms[0].every == 1


def test_an_arm_that_was_asked_for_has_the_budget_of_the_same_mechanisms():
    assert arms_of([]) == list(ARMS)
    plain, known, other = arms_of(['Grapes(mode="local")', "Grapes(clip=None)"])
    assert not plain.mechanisms and known.budgets["mlp"] == 1.10 and not other.budgets
    with pytest.raises(ValueError, match="there twice"):
        arms_of(["Grapes", "Grapes()"])


def test_a_budget_is_that_of_the_workload_as_it_is():
    plain, grapes = arms_of(["Grapes"])
    found = [grapes.budget(workload, "cpu") for workload in map(named, ("mlp", "resnet18", "transformer"))]
    assert found == [1.10, 1.03, 1.03]
    assert grapes.budget(named("mlp", batch_size=32), "cpu") is None
    assert grapes.budget(named("gpt2"), "cpu") is None
    assert grapes.budget(named("gpt2"), "cuda") == grapes.budget(named("resnet18", batch_size=256), "cuda")
    assert grapes.budget(named("resnet18"), "cuda") is None is plain.budget(named("gpt2"), "cuda")
