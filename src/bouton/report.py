"""The report: which mechanism took which weight, as plain data that no longer refers to the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from bouton.plan import Decision
from bouton.synapse import find_others


@dataclass(frozen=True)
class Row:
    """One line of a report: what a mechanism did with one weight."""

    mechanism: str
    site: str
    weight: str
    shape: tuple[int, ...]
    shared_with: tuple[str, ...]
    left_because: str | None


@dataclass(frozen=True)
class Report:
    """What ``attach`` did, weight by weight; ``print`` it.

    ``readout`` names the read-out layers, and ``others`` the weights that are no synapse group, and so are
    out of reach of every mechanism.
    """

    rows: tuple[Row, ...]
    readout: tuple[str, ...]
    others: tuple[str, ...]
    seed: int

    def __str__(self) -> str:
        lines = []
        for name, site in dict.fromkeys((row.mechanism, row.site) for row in self.rows):
            own = [row for row in self.rows if (row.mechanism, row.site) == (name, site)]
            taken = sum(row.left_because is None for row in own)
            lines.append(f"{name} ({site}): {taken} of {len(own)} weights")
            for row in own:
                shared = f", shared with {', '.join(row.shared_with)}" if row.shared_with else ""
                left = f"  left: {row.left_because}" if row.left_because else ""
                shape = "x".join(map(str, row.shape))
                lines.append(f"  {'-' if left else '+'} {row.weight} [{shape}]{shared}{left}")
        if self.others:
            others = ", ".join(self.others)
            lines.append(
                f"no mechanism reaches: {others} (of another layer type, or a part of a computed weight)"
            )
        lines.append(f"read-out: {', '.join(self.readout) or 'none'}; choose another with readout=")
        return "\n".join([*lines, f"seed {self.seed}"])


def make_report(model: nn.Module, decisions: Sequence[Decision], seed: int) -> Report:
    """Write decisions as plain data, which no longer refers to the model."""
    rows = tuple(
        Row(
            mechanism=type(decision.mechanism).__name__,
            site=decision.mechanism.site,
            weight=decision.group.name,
            shape=tuple(decision.group.weight.shape),
            shared_with=decision.group.aliases + decision.group.elsewhere,
            left_because=decision.reason,
        )
        for decision in decisions
    )
    groups = list(dict.fromkeys(decision.group for decision in decisions))
    readout = tuple(g.path or type(g.layers[0]).__name__ for g in groups if g.readout)
    return Report(rows, readout, find_others(model, groups), seed)
