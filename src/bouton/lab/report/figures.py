"""The page's figures, as plotly's dictionaries: colours and texts, no theme."""

from __future__ import annotations

import html
import json
import statistics
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import plotly.graph_objects as go

from bouton.lab.records import Epoch, RunResult
from bouton.lab.statistics import Difference
from bouton.lab.summary import ArmSummary, Summary
from bouton.lab.visible import visible

# Okabe and Ito's colours, told apart by the colour-blind and seen on white and on black; the
# controls are grey, so that the arms in question stand out.
GREYS = {"plain": "#7f7f7f", "matched": "#a9a9a9"}
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#8c6bb1",
    "#b2a000",
    "#9c5a2d",
    "#12a5a5",
)


def make_figures(summary: Summary) -> list[dict[str, Any]]:
    """Makes the figures: learning curves of accuracy and of loss, and the paired differences.

    Each is a dictionary with `id`, `title`, `caption` and plotly's `data` and `layout`.
    """
    colours = _colours(summary.arms)
    bands = "Line: mean over the finished seeds. Band: from the lowest to the highest seed."
    accuracy = _curves(summary.arms, colours, lambda e: 100 * e.test_accuracy, "{:.2f} %")
    accuracy.update_layout(yaxis_title="test accuracy (%)")
    if summary.target is not None:
        accuracy.add_hline(
            y=100 * summary.target, line={"dash": "dot", "width": 1, "color": GREYS["plain"]}
        )
    loss = _curves(summary.arms, colours, lambda e: e.train_loss, "{:.4f}")
    loss.update_layout(yaxis_title="training loss", yaxis_type="log")
    return [
        _packed("accuracy", "Learning curves", f"{bands} Dotted: the target accuracy.", accuracy),
        _packed("loss", "Training loss", f"{bands} Logarithmic scale.", loss),
        _packed(
            "differences",
            "Paired differences",
            "Each small dot is a seed; the large mark is the mean, with its 95 % interval. "
            "Right of zero is better.",
            _differences(summary.arms, colours),
        ),
    ]


def _curves(
    arms: Sequence[ArmSummary],
    colours: dict[str, str],
    value: Callable[[Epoch], float],
    form: str,
) -> go.Figure:
    figure = go.Figure()
    for arm in arms:
        runs = [run for run in arm.runs if run.status == "finished"]
        if not runs:
            _add_absent(figure, arm, colours[arm.name])
            continue
        steps, mean, low, high = _band(runs, value)
        shared: dict[str, Any] = {"legendgroup": _label(arm.name), "x": steps, "mode": "lines"}
        # One closed outline: up along the highest seeds, back along the lowest.
        figure.add_scatter(
            **shared | {"x": steps + steps[::-1]},
            y=high + low[::-1],
            fill="toself",
            fillcolor=_transparent(colours[arm.name]),
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
        )
        figure.add_scatter(
            **shared,
            y=mean,
            name=_label(arm.name),
            line={
                "color": colours[arm.name],
                "width": 2,
                "dash": "dash" if arm.control == "matched" else "solid",
            },
            text=[
                f"{form.format(m)} ({form.format(a)} to {form.format(b)})"
                for m, a, b in zip(mean, low, high, strict=True)
            ],
            hovertemplate="%{text}",
        )
    figure.update_layout(xaxis_title="optimizer steps", hovermode="x unified")
    return figure


def _band(
    runs: Sequence[RunResult], value: Callable[[Epoch], float]
) -> tuple[list[int], list[float], list[float], list[float]]:
    """Steps, and mean, lowest and highest value over the runs, epoch by epoch."""
    epochs = list(zip(*(run.epochs for run in runs), strict=True))
    values = [[value(epoch) for epoch in column] for column in epochs]
    return (
        [column[0].step for column in epochs],
        [statistics.fmean(column) for column in values],
        [min(column) for column in values],
        [max(column) for column in values],
    )


def _add_absent(figure: go.Figure, arm: ArmSummary, colour: str) -> None:
    """An arm without a finished run has no curve, but its place in the legend says so."""
    figure.add_scatter(
        x=[None],
        y=[None],
        mode="lines",
        name=_label(arm.name) + " (no finished run)",
        line={"color": colour, "dash": "dot"},
    )


def _differences(arms: Sequence[ArmSummary], colours: dict[str, str]) -> go.Figure:
    figure = go.Figure()
    asked = [arm for arm in arms if arm.control != "plain"]
    for arm in asked:
        label = _label(arm.name)
        for difference, against, symbol in (
            (arm.vs_plain, "against plain", "circle"),
            (arm.vs_matched, "against plain-matched", "diamond-open"),
        ):
            if difference is not None:
                _add_difference(figure, difference, (label, against), symbol, colours[arm.name])
    figure.add_vline(x=0, line={"width": 1, "color": GREYS["plain"]})
    figure.update_layout(
        xaxis_title="difference in accuracy (percentage points)",
        yaxis={"autorange": "reversed", "type": "multicategory"},
        showlegend=False,
        height=120 + 75 * len(asked),
    )
    return figure


def _add_difference(
    figure: go.Figure, difference: Difference, place: tuple[str, str], symbol: str, colour: str
) -> None:
    points = [100 * value for value in difference.values]
    figure.add_scatter(
        x=points,
        y=[[place[0]] * len(points), [place[1]] * len(points)],
        mode="markers",
        marker={"color": colour, "size": 6, "opacity": 0.35},
        hovertemplate="one seed: %{x:+.2f}<extra></extra>",
    )
    interval = None
    if difference.low is not None and difference.high is not None:
        interval = {
            "type": "data",
            "symmetric": False,
            "array": [100 * (difference.high - difference.mean)],
            "arrayminus": [100 * (difference.mean - difference.low)],
        }
    figure.add_scatter(
        x=[100 * difference.mean],
        y=[[place[0]], [place[1]]],
        mode="markers",
        marker={"color": colour, "size": 11, "symbol": symbol},
        error_x=interval,
        hovertemplate=f"{place[0]} {place[1]}: %{{x:+.2f}}<extra></extra>",
    )


def _packed(identifier: str, title: str, caption: str, figure: go.Figure) -> dict[str, Any]:
    figure.update_layout(template="none")
    content = json.loads(figure.to_json())
    return {
        "id": identifier,
        "title": title,
        "caption": caption,
        "data": content["data"],
        "layout": content["layout"],
    }


def _colours(arms: Sequence[ArmSummary]) -> dict[str, str]:
    supply = cycle(COLOURS)
    return {arm.name: GREYS[arm.control] if arm.control else next(supply) for arm in arms}


def _transparent(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.15)"


def _label(name: str) -> str:
    """Escapes a name: plotly reads labels as a kind of HTML, and some as templates with %{...}."""
    return html.escape(visible(name), quote=False).replace("%{", "&#37;{")
