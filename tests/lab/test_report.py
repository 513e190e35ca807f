from __future__ import annotations

import dataclasses
import re

import pytest

from bouton.lab import carry_out
from bouton.lab.report.figures import make_figures
from bouton.lab.report.page import write_page


@pytest.fixture
def summary(small, tmp_path, quiet):
    return carry_out(dataclasses.replace(small, seeds=2), tmp_path, console=quiet)


def test_every_arm_has_its_curve_with_a_band(summary):
    accuracy, loss, differences = make_figures(summary)
    for figure in (accuracy, loss):
        names = [trace.get("name") for trace in figure["data"] if trace.get("name")]
        assert names == ["plain", "plain-matched", "Grapes"]
        bands = [trace for trace in figure["data"] if trace.get("fill") == "toself"]
        assert len(bands) == 3
    colours = [t["line"]["color"] for t in accuracy["data"] if t.get("name")]
    assert len(set(colours)) == 3
    mean = next(t for t in accuracy["data"] if t.get("name") == "Grapes")["y"][-1]
    assert mean == pytest.approx(100 * summary.arms[2].accuracy)
    assert differences["data"]


def test_the_page_needs_nothing_beside_it(summary, tmp_path):
    page = write_page(summary, tmp_path).read_text()
    assert "Plotly.react" in page and len(page) > 1_000_000
    head = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert "http" not in head and "src=" not in head and '<link rel="stylesheet' not in head
    for text in ("plain-matched", "Grapes", "bouton 0", "threads"):
        assert text in head


def test_the_terminal_table_fits_80_columns_and_drops_nothing(summary, quiet):
    text = quiet.file.getvalue()
    table = text[text.index("mlp on digits") :]
    assert all(len(line) <= 80 for line in table.splitlines() if not line.startswith("The page"))
    for piece in ("accuracy", "plain-matched", "steps to", "1.00x", "lr 0.05", "± "):
        assert piece in table
    for arm in summary.arms:
        assert f"{100 * arm.accuracy:.2f}" in table
        assert f"{arm.name}: {arm.verdict}"[:60] in table
