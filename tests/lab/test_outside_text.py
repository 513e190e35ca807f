"""What came from outside is shown as text, wherever it stands: in the page, its figures, the terminal."""

from __future__ import annotations

import dataclasses
import html
import io
import json
import re
import subprocess
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import pytest
from forged import finished, write_sweep
from lab_commands import SMALL
from rich.console import Console

from bouton.cli import main
from bouton.lab import define, rebuild
from bouton.lab.arms import Arm
from bouton.lab.comparison import Comparison
from bouton.lab.records import RunResult
from bouton.lab.report.terminal import LiveProgress
from bouton.lab.visible import visible

EVIL = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "--> ]]> </pre></dd></title></style>",
    "{{ 7*7 }}{% for x in y %}",
    "${alert(1)}`\\",
    "a\u2028b\u2029c",
    "&lt;b&gt; &amp;",
    "javascript:alert(1)",
    "<a href='javascript:alert(1)'>x</a>",
    "%{x} %{customdata}",
    "[red]x[/red] [link=http://x]y[/link] :smile:",
    "\x1b]0;title\x07 \x1b[2J \x9b31m \r overwritten \b\x00\x7f",
    "\u202eright to left\u2066",
    "half \ud800",
]


def forge(folder: Path, text: str) -> Comparison:
    """A sweep with the text wherever a text can be."""
    plain = define(data="digits", mechanisms=["Grapes"], epochs=2, seeds=3)
    source = dataclasses.replace(plain.data, name=text, path=text, sha256=text)
    arms = (*plain.arms, Arm(name=text, mechanisms=({"name": text},)))
    comparison = dataclasses.replace(
        plain, data=source, model=source, arms=arms, version=text, command=text, left_out=((text, text),)
    )
    odd = {"environment": {text: text}, "stats": {text: {text: {text: 1.0, "events": 0.0}}}}
    good = finished(2, **odd)
    failed = RunResult(status="failed", error=f"Traceback\n{text}", environment={text: text})
    diverged = finished(1, **odd, error=text)
    write_sweep(comparison, folder, good, good, good, good, failed, good, good, good,
                dataclasses.replace(diverged, status="diverged"), good, good, good)  # fmt: skip
    return comparison


class Structure(HTMLParser):
    """The elements and attributes of a page, its texts, and what its scripts are."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[object] = []
        self.scripts: list[str] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, attributes))

    def handle_endtag(self, tag):
        self.elements.append(f"/{tag}")

    def handle_comment(self, data):
        self.elements.append("comment")

    def handle_data(self, data):
        (self.scripts if self.elements[-1:] == [("script", [])] else self.texts).append(data)


def page_of(folder: Path, text: str) -> tuple[Structure, str]:
    forge(folder, text)
    terminal = io.StringIO()
    rebuild(folder, console=Console(file=terminal, width=500, highlight=False))
    return Structure((folder / "report.html").read_text("utf-8")), terminal.getvalue()


@pytest.fixture(scope="module")
def harmless(tmp_path_factory) -> Structure:
    return page_of(tmp_path_factory.mktemp("harmless"), "harmless")[0]


def figures(page: Structure) -> tuple[str, str]:
    """The page's own script: its data, and the rest."""
    script = "".join(page.scripts)
    data = re.search(r"^const figures = (.*);$", script, flags=re.MULTILINE)
    return data.group(1), script.replace(data.group(1), "")


@pytest.mark.parametrize("text", EVIL)
def test_the_page_shows_it_as_text(text, harmless, tmp_path):
    page, _ = page_of(tmp_path, text)
    # No element, attribute, comment or script that a page of harmless texts would not have.
    assert page.elements == harmless.elements
    data, rest = figures(page)
    assert rest == figures(harmless)[1]
    assert not re.search("[<>&'\u2028\u2029]", data)
    # Of an error a verdict shows the last line, which may be less than the whole text.
    places = "".join(harmless.texts).count("harmless")
    assert "".join(page.texts).count(visible(text)) in (places, places - 1) and places > 15
    # plotly reads labels as HTML of its own, and replaces %{...} in some.
    label = html.escape(visible(text), quote=False).replace("%{", "&#37;{")
    traces = [trace for figure in json.loads(data) for trace in figure["data"]]
    assert [trace["name"] for trace in traces if "name" in trace].count(label) == 2
    assert label == text or json.dumps(text)[1:-1] not in json.dumps(traces)


@pytest.mark.parametrize("text", EVIL)
def test_the_terminal_shows_it_as_text(text, tmp_path):
    _, shown = page_of(tmp_path, text)
    assert visible(text) in shown
    comparison = forge(tmp_path / "again", text)
    console = Console(file=io.StringIO(), width=500, highlight=False)
    with LiveProgress(console, 1) as progress:
        progress.start_run(comparison.arms[-1], 0, 1)
        progress.end_run(comparison.arms[-1], 0, RunResult(status="failed", error=text), made_before=False)
    lines = console.file.getvalue()
    assert lines.count(f"seed 0  {visible(text)}") == 1, "the run's line"
    assert lines.count(f"seed 0 {visible(text)}") == 1, "the run's bar"
    for character in shown + lines:
        assert character == "\n" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


@pytest.mark.parametrize(
    "typed", [["report", "{}"], [*SMALL, "--model", "{}"], [*SMALL, "--mechanisms", "{}"]]
)
def test_an_error_shows_it_as_text(typed, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([part.format("x\x1b]0;title\x07\x9b31m\u202e[red]") for part in typed]) == 2
    error = capsys.readouterr().err
    assert r"x\x1b]0;title\x07\x9b31m\u202e[red]" in error
    assert all(character == "\n" or character.isprintable() for character in error)


def test_the_script_of_the_worst_page_is_one_that_runs(tmp_path):
    """Its figures as JavaScript reads them are those that Python wrote."""
    page, _ = page_of(tmp_path, "".join(EVIL))
    data, _ = figures(page)
    (tmp_path / "figures.js").write_text(f"process.stdout.write(JSON.stringify({data}))")
    try:
        done = subprocess.run(["node", tmp_path / "figures.js"], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        pytest.skip("node is not installed")
    assert json.loads(done.stdout) == json.loads(data)


def test_what_cannot_be_seen_is_written_as_python_writes_it():
    assert visible("a\nb\tc ä ☃ [x]") == "a\nb\tc ä ☃ [x]"
    assert visible("\x1b\x00\x9b\u2028\u202e\ud800\r") == r"\x1b\x00\x9b\u2028\u202e\ud800\r"
