"""Does it help, and what does it cost? Paired comparisons with controls, and paired step times.

Example:
    A comparison as Python calls, the same as `bouton compare`::

        from pathlib import Path
        from bouton import lab

        comparison = lab.define(data="digits", mechanisms=["Grapes"], epochs=5)
        summary = lab.carry_out(comparison, Path("my-sweep"))
        print(summary.arms[-1].verdict)
"""

from bouton.lab.bench import benchmark
from bouton.lab.comparison import Comparison, read_comparison
from bouton.lab.dataset import Dataset
from bouton.lab.experiments import carry_out, define, demo, rebuild
from bouton.lab.folder import FolderError
from bouton.lab.summary import ArmSummary, Summary

__all__ = [
    "ArmSummary",
    "Comparison",
    "Dataset",
    "FolderError",
    "Summary",
    "benchmark",
    "carry_out",
    "define",
    "demo",
    "read_comparison",
    "rebuild",
]
