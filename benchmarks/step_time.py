"""Time every mechanism on three workloads beside the older package; some twelve minutes on two idle cores.

    python benchmarks/step_time.py
    BOUTON_NATIVE=0 python benchmarks/step_time.py --no-older    # as where there is no C compiler
    python benchmarks/write_tables.py                            # puts the tables into docs/speed.md

The results go to benchmarks/results/step-time-cpu.json and step-time-torch-loops-cpu.json. The older
package is installed without its dependencies into benchmarks/.older, and used for nothing else.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from older import install, older_arms
from rich.console import Console

from bouton.lab.bench import ARMS, Effort, Setting, measure, named, write_records
from bouton.lab.bench.record import read_records
from bouton.lab.bench.table import make_table
from bouton.lab.bench.terminal import LiveProgress, print_table
from bouton.native.library import loops_used

RESULTS = Path(__file__).parent / "results"
THREADS = 2


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=8, help="the most for each measurement")
    parser.add_argument("--precision", type=float, default=0.005, help="where to stop before that")
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--workloads", nargs="+", default=["mlp", "resnet18", "transformer"])
    parser.add_argument("--older", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.older:
        install()
    console, older = Console(highlight=False), older_arms() if asked.older else {}
    alone = loops_used() == "of torch"
    out = asked.out or RESULTS / ("step-time-torch-loops-cpu.json" if alone else "step-time-cpu.json")
    records = {record.workload: record for record in read_records(out)} if out.exists() else {}
    effort = Effort(seconds=asked.seconds, precision=asked.precision)
    command = "BOUTON_NATIVE=0 " * alone + shlex.join(["python", "benchmarks/step_time.py", *sys.argv[1:]])
    setting = Setting(threads=asked.threads, effort=effort, command=command)
    for name in asked.workloads:
        with LiveProgress(console, len(ARMS) + len(older)) as progress:
            records[name] = measure(
                named(name),
                ARMS,
                setting,
                other=older,
                other_name="older package" if older else "",
                progress=progress,
            )
        print_table(console, make_table(records[name]))
        write_records(out, list(records.values()))  # and those of other workloads that were there


if __name__ == "__main__":
    main()
