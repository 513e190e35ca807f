"""The examples of docs/spiking.md run, one after the other, and print what the page says."""

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "spiking.md").read_text()
ROW = re.compile(r"^\| (\d+) \| (.*), (.*), (.*) \| (.*), (.*), (.*) \|$", flags=re.MULTILINE)


def test_examples_run_and_print_what_the_page_says(capsys):
    names = {}
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)):
        exec(compile(code, f"docs/spiking.md, block {number}", "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    assert "  - 2.weight [10x40]  left: the read-out is never modulated" in printed

    rows = [[float(cell) for cell in row] for row in ROW.findall(PAGE)]
    stated = [[row[0], *row[1:4]] for row in rows] + [[row[0], *row[4:]] for row in rows]
    found = [[float(number) for number in line.split()] for line in printed[-len(stated) :]]
    assert len(stated) == 6
    for ours, theirs in zip(found, stated, strict=True):
        assert ours[0] == theirs[0]
        assert all(0.5 < a / b < 2 for a, b in zip(ours, theirs, strict=True))
