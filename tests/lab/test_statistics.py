from __future__ import annotations

import math

import numpy as np
import pytest

from bouton.lab.records import Epoch
from bouton.lab.statistics import paired_difference, steps_to_target
from bouton.lab.verdict import verdict


def outcome(*differences: float) -> str:
    return paired_difference(differences, [0.0] * len(differences)).outcome


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([0.02, 0.03, 0.02, 0.04, 0.03], "helps"),
        ([-0.02, -0.03, -0.02, -0.04, -0.03], "hurts"),
        ([0.02, -0.03, 0.02, -0.01, 0.00], "no difference seen"),
        ([0.0, 0.0, 0.0, 0.0, 0.0], "no difference seen"),
        ([0.01] * 5, "helps"),
        ([0.5], "too few seeds to say"),
        ([0.5, 0.5], "too few seeds to say"),
        ([0.02, 0.03, 0.02], "too few seeds to say"),  # three of one sign: 25 % by chance
        ([0.02, -0.03, 0.02], "no difference seen"),
    ],
)
def test_outcomes(differences, expected):
    assert outcome(*differences) == expected


def test_a_difference_is_paired():
    # The seeds differ far more than the arms: only the pairs show the arm's constant gain.
    reference = np.array([0.1, 0.9, 0.3, 0.7, 0.5])
    gain = np.array([0.010, 0.011, 0.009, 0.010, 0.012])
    found = paired_difference(reference + gain, reference)
    assert found.mean == pytest.approx(gain.mean())
    assert found.effect == pytest.approx(gain.mean() / gain.std(ddof=1))
    assert gain.min() <= found.low < found.mean < found.high <= gain.max()
    assert found.outcome == "helps"


def test_the_interval_is_the_same_each_time():
    values, reference = [0.5, 0.6, 0.4, 0.7, 0.5], [0.4, 0.5, 0.5, 0.5, 0.5]
    assert paired_difference(values, reference) == paired_difference(values, reference)


def test_no_pair_no_difference():
    assert paired_difference([], []) is None


def test_intervals_cover_the_truth():
    # 200 experiments of 8 pairs with a true difference of 0.1: 95 % intervals must cover it in
    # about 95 % of them. The percentile interval without widening covers it in some 87 %.
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        found = paired_difference(rng.normal(0.1, 1, 8), np.zeros(8))
        covered += found.low <= 0.1 <= found.high
    assert covered / 200 > 0.91


def epochs(*accuracies: float) -> list[Epoch]:
    return [
        Epoch(epoch=n, step=10 * n, train_loss=1.0, test_loss=1.0, test_accuracy=a, step_seconds=1)
        for n, a in enumerate(accuracies, 1)
    ]


def test_steps_to_target():
    assert steps_to_target(epochs(0.3, 0.6, 0.5, 0.7), 0.55) == 20
    assert steps_to_target(epochs(0.3, 0.6), 0.6) == 20
    assert steps_to_target(epochs(0.3, 0.4), 0.6) == math.inf


def difference(mean: float):
    return paired_difference([mean, mean * 1.1, mean * 0.9, mean * 1.05, mean], [0.0] * 5)


UNSEEN = paired_difference([0.01, -0.01, 0.02, -0.02, 0.001], [0.0] * 5)


@pytest.mark.parametrize(
    ("vs_plain", "vs_matched", "words"),
    [
        (difference(0.1), difference(0.1), "helps: better than plain, and than plain-matched"),
        (difference(0.1), UNSEEN, "which only has a larger learning rate"),
        (difference(0.1), difference(-0.1), "plain-matched does better"),
        (UNSEEN, UNSEEN, "no difference seen"),
        (difference(-0.1), UNSEEN, "hurts"),
        (difference(0.1), None, "no matched control"),
        (paired_difference([0.1], [0]), paired_difference([0.2], [0]), "too few seeds to say"),
        (paired_difference([0] * 5, [0] * 5), UNSEEN, "no difference at all"),
        (None, None, "nothing to compare"),
    ],
)
def test_verdicts(vs_plain, vs_matched, words):
    assert words in verdict(vs_plain, vs_matched, diverged=0, seeds=5)


def test_survivors_of_divergence_get_no_verdict():
    assert "diverged with 1 of 5" in verdict(difference(0.1), UNSEEN, diverged=1, seeds=5)
