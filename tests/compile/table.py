"""The tables of docs/what-is-tested.md about torch.compile.

``PYTHONPATH=src:tests/contract python tests/compile/table.py`` prints them; with ``measure`` behind it, it
also prints by how much compiled training differs from eager training here, which takes some minutes.
"""

from __future__ import annotations

import sys

import torch
from compiling import ROWS, STEPS, compiled
from nets import NETS

MARKERS = ("<!-- compiled -->", "<!-- end of compiled -->")
# What takes long to compile gets fewer rows: many small steps in one graph, and large nets.
SLOW, LARGE = {"cells", "spiking"}, {"residual", "transformer"}
FOR_SLOW = {"plain", "all at once"}
FOR_LARGE = FOR_SLOW | {"FeedbackAlignment()", "Grapes()", "MultiSynapse()"}


def is_tested(net, row):
    """Whether a test compiles this net with these mechanisms."""
    return row in FOR_SLOW or (net not in SLOW and (net not in LARGE or row in FOR_LARGE))


def expected_graph(net, row):
    """Torch compiles a fused LSTM in pieces; the rest is in one graph, but for direct feedback."""
    return "graph breaks" if net == "lstm" or "'dfa'" in row else "one graph"


def markdown(head, rows):
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def graph_table():
    """Which net compiles with which mechanisms, and how."""
    rows = [
        [row if row in ("plain", "all at once") else f"`{row}`"]
        + [expected_graph(net, row) if is_tested(net, row) else "not run" for net in NETS]
        for row in ROWS
    ]
    return markdown(["mechanism", *NETS], rows)


def difference_table(backend):
    """The largest relative difference after some steps, of plain nets and with all mechanisms at once."""
    rows = []
    for net in NETS:
        found = [compiled(net, row, backend) for row in ("plain", "all at once")]
        rows.append([net, backend, *(f"{outcome.difference:.1e}" for outcome in found)])
    return markdown(["net", "backend", "plain", "all at once"], rows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(MARKERS[0], graph_table(), MARKERS[1], sep="\n")
    if sys.argv[1:] == ["measure"]:
        for backend in ("aot_eager", "inductor"):
            print(f"\nlargest relative difference after {STEPS} steps\n\n{difference_table(backend)}")
