"""Time every mechanism on three workloads beside the older package; some twelve minutes on two idle cores.

    python benchmarks/step_time.py
    python benchmarks/write_tables.py    # puts the tables into docs/speed.md

The result goes to benchmarks/results/step-time-cpu.json. The older package is installed without its
dependencies into benchmarks/.older, and used for nothing else.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from older import install, older_arms
from rich.console import Console

from bouton.lab.bench import ARMS, Effort, Setting, measure, named, write_records
from bouton.lab.bench.table import make_table
from bouton.lab.bench.terminal import LiveProgress, print_table

OUT = Path(__file__).parent / "results" / "step-time-cpu.json"
THREADS = 2


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=8, help="the most for each measurement")
    parser.add_argument("--precision", type=float, default=0.005, help="where to stop before that")
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--workloads", nargs="+", default=["mlp", "resnet18", "transformer"])
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    install()
    console, older, records = Console(highlight=False), older_arms(), []
    effort = Effort(seconds=asked.seconds, precision=asked.precision)
    command = shlex.join(["python", "benchmarks/step_time.py", *sys.argv[1:]])
    setting = Setting(threads=asked.threads, effort=effort, command=command)
    for name in asked.workloads:
        with LiveProgress(console, len(ARMS) + len(older)) as progress:
            records.append(
                measure(
                    named(name), ARMS, setting, other=older, other_name="older package", progress=progress
                )
            )
        print_table(console, make_table(records[-1]))
        write_records(asked.out, records)


if __name__ == "__main__":
    main()
