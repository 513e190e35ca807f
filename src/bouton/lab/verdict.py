"""The plain words for what was seen."""

from __future__ import annotations

from bouton.lab.statistics import Difference, Outcome

# What a larger learning rate alone (the matched control) leaves of the finding against plain.
_WORDS: dict[tuple[Outcome, Outcome], str] = {
    ("helps", "helps"): "helps: better than plain, and than plain-matched",
    ("helps", "no difference seen"): (
        "helps over plain, but no difference seen against plain-matched, which only has a larger "
        "learning rate"
    ),
    ("helps", "hurts"): (
        "helps over plain, but plain-matched does better: a larger learning rate alone does more"
    ),
    ("no difference seen", "helps"): "no difference seen against plain; better than plain-matched",
    ("no difference seen", "no difference seen"): "no difference seen",
    ("no difference seen", "hurts"): (
        "no difference seen against plain; plain-matched does better than it"
    ),
    ("hurts", "helps"): "hurts: worse than plain (better than plain-matched)",
    ("hurts", "no difference seen"): "hurts: worse than plain, as plain-matched is",
    ("hurts", "hurts"): "hurts: worse than plain, and than plain-matched",
}


def verdict(
    vs_plain: Difference | None, vs_matched: Difference | None, *, diverged: int, seeds: int
) -> str:
    """Says what was seen of an arm in question.

    Args:
        vs_plain: the paired difference to plain, or None without a pair.
        vs_matched: the paired difference to the matched control, or None without a pair.
        diverged: how many of the arm's runs diverged.
        seeds: how many runs the arm has.

    Example:
        >>> verdict(None, None, diverged=2, seeds=5)
        'unstable: diverged with 2 of 5 seeds'
    """
    if diverged:
        # The seeds that survived are no fair sample: nothing is said about them.
        return f"unstable: diverged with {diverged} of {seeds} seeds"
    if vs_plain is None:
        return "nothing to compare: no run of this arm has a finished partner"
    if all(value == 0 for value in vs_plain.values):
        return "no difference at all: each run is as good as plain's to the last sample"
    against_plain = vs_plain.outcome
    against_matched = vs_matched.outcome if vs_matched is not None else None
    words = _WORDS.get((against_plain, against_matched)) if against_matched is not None else None
    if words is not None:
        return words
    if against_matched is None:
        return f"{against_plain} (against plain; there is no matched control)"
    if against_plain == against_matched:
        return against_plain
    return f"{against_plain} against plain; against plain-matched: {against_matched}"


def control_verdict(vs_plain: Difference | None, *, diverged: int, seeds: int) -> str:
    """Says what was seen of the matched control: what a larger learning rate alone does."""
    if diverged or vs_plain is None:
        return verdict(vs_plain, None, diverged=diverged, seeds=seeds)
    return {
        "helps": "a larger learning rate alone helps",
        "no difference seen": "a larger learning rate alone makes no difference seen",
        "hurts": "a larger learning rate alone hurts",
        "too few seeds to say": "too few seeds to say",
    }[vs_plain.outcome]
