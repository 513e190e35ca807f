"""Time every mechanism on models of growing size; some eight minutes on two idle cores.

    python benchmarks/growth.py
    python benchmarks/write_tables.py    # puts the tables into docs/speed.md

MLPs of widths 256 to 4096, and transformers of 1 to 100 million weights. The results go to
benchmarks/results/growth-width-cpu.json and growth-weights-cpu.json.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from rich.console import Console

from bouton.lab.bench import ARMS, Effort, Setting, measure, write_records
from bouton.lab.bench.growth import growth_table, heavier, wider
from bouton.lab.bench.terminal import LiveProgress, print_table

OUT = Path(__file__).parent / "results"
SERIES = {"width": wider, "weights": heavier}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=1.5, help="the most for each measurement")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--largest", type=float, default=float("inf"), help="leave out larger models")
    parser.add_argument("--series", nargs="+", choices=SERIES, default=list(SERIES))
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    console = Console(highlight=False)
    command = shlex.join(["python", "benchmarks/growth.py", *sys.argv[1:]])
    effort = Effort(seconds=asked.seconds, precision=0.005, least_pairs=4)
    setting = Setting(threads=asked.threads, effort=effort, memory=False, command=command)
    for series in asked.series:
        records = []
        for workload in SERIES[series]():
            if sum(p.numel() for p in workload.start().model.parameters()) > asked.largest:
                continue
            console.print(workload.describe())
            with LiveProgress(console, len(ARMS)) as progress:
                records.append(measure(workload, ARMS, setting, progress=progress))
        print_table(console, growth_table(records))
        write_records(asked.out / f"growth-{series}-cpu.json", records)


if __name__ == "__main__":
    main()
