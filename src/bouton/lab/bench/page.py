"""The tables of a page, written between its marks from the files that hold the results."""

from __future__ import annotations

import re
from pathlib import Path

from bouton.lab.bench.growth import growth_table
from bouton.lab.bench.record import read_records
from bouton.lab.bench.table import make_table, markdown

_MARKED = re.compile(r"(<!-- (tables|growth): ([\w.-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(page: str, results: Path) -> str:
    """The page with its tables as the files have them.

    Between `<!-- tables: FILE -->` and `<!-- end -->` comes a table for each record of the file, between
    `<!-- growth: FILE -->` and `<!-- end -->` one table of all of them.

    Args:
        page: Markdown.
        results: the folder of the files.

    Raises:
        ValueError: if a file cannot be read.

    Example:
        >>> fill("No marks.", Path("."))
        'No marks.'
    """

    def written(found: re.Match[str]) -> str:
        begin, kind, file, end = found.groups()
        records = read_records(results / file)
        tables = [growth_table(records)] if kind == "growth" else [make_table(record) for record in records]
        commands = "\n".join(dict.fromkeys(record.command for record in records))
        command = f"```\n{commands}\n```"
        return begin + "\n\n".join([*map(markdown, tables), command]) + "\n" + end

    return _MARKED.sub(written, page)
