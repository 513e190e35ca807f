"""The page: one HTML file that needs nothing beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from bouton.lab.folder import write_atomically
from bouton.lab.report.figures import make_figures
from bouton.lab.report.table import MISSING, make_table
from bouton.lab.summary import Summary
from bouton.lab.visible import visible

FILE = "report.html"


def write_page(summary: Summary, directory: Path) -> Path:
    """Writes `report.html`.

    Everything that comes from outside (names, paths, errors) is escaped.

    Args:
        summary: the findings.
        directory: where to write.

    Returns:
        The page's path.
    """
    environment = Environment(
        loader=PackageLoader("bouton.lab", "report"),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("page.html.jinja").render(
        table=make_table(summary),
        arms=summary.arms,
        figures=make_figures(summary),
        facts=_facts(summary),
        errors=_errors(summary),
        plotly=Markup(get_plotlyjs()),  # the library itself, not the user's text
    )
    path = directory / FILE
    write_atomically(path, text)
    return path


def _shown(value: Any) -> Any:
    """What the template prints, before it is escaped; Markup is the page's own."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _facts(summary: Summary) -> list[tuple[str, str]]:
    """How the numbers were made."""
    asked = summary.comparison
    facts: list[tuple[str, Any]] = [
        ("command", asked.command),
        ("data", _source(asked.data.name, asked.data.sha256)),
        ("model", _source(asked.model.name, asked.model.sha256)),
        ("training samples", "all" if asked.samples is None else asked.samples),
        ("parameters", _distinct(run.parameters for arm in summary.arms for run in arm.runs)),
        ("optimizer", f"{asked.optimizer}, learning rate {asked.lr:g}"),
        ("batch size", asked.batch_size),
        ("epochs", asked.epochs),
        ("seeds", f"0 to {asked.seeds - 1}, paired: same initial weights, same batches"),
    ]
    for environment in summary.environments:
        made = ", ".join(f"{name} {value}" for name, value in environment.items())
        facts.append(("made with", made))
    return [(name, str(value)) for name, value in facts]


def _errors(summary: Summary) -> list[tuple[str, str]]:
    """One entry for each different error of an arm."""
    found = {(arm.name, run.error) for arm in summary.arms for run in arm.runs if run.error}
    return sorted(found)


def _source(name: str, sha256: str | None) -> str:
    return f"{name} (SHA-256 {sha256})" if sha256 else name


def _distinct(numbers: Any) -> str:
    return ", ".join(f"{number:,}" for number in sorted({n for n in numbers if n})) or MISSING
