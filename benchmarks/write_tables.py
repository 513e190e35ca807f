"""Write the tables of docs/speed.md from the results in benchmarks/results.

python benchmarks/write_tables.py
"""

from __future__ import annotations

from pathlib import Path

from bouton.lab.bench.page import fill

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "speed.md"


def main() -> None:
    """Write the page."""
    PAGE.write_text(fill(PAGE.read_text("utf-8"), ROOT / "benchmarks" / "results"), "utf-8")


if __name__ == "__main__":
    main()
