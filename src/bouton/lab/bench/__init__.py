"""What do mechanisms cost? Step time against a plain step beside it, and memory, counted exactly.

Example:
    The same as `bouton bench --workload transformer --mechanisms Grapes`::

        from bouton import lab

        record = lab.benchmark(workload="transformer", mechanisms=["Grapes"])
        print(record.arms[-1].measured.ratio)
"""

from bouton.lab.bench.arms import ARMS, BenchArm
from bouton.lab.bench.command import benchmark
from bouton.lab.bench.measurement import Setting, measure
from bouton.lab.bench.record import Record, read_records, write_records
from bouton.lab.bench.timing import Effort
from bouton.lab.bench.workloads import WORKLOADS, Workload, named

__all__ = [
    "ARMS",
    "WORKLOADS",
    "BenchArm",
    "Effort",
    "Record",
    "Setting",
    "Workload",
    "benchmark",
    "measure",
    "named",
    "read_records",
    "write_records",
]
