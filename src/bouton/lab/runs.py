"""The run folder: one folder per run, named by its configuration's hash, all or nothing.

    DIR/runs/<hash>/config.json     what was asked
    DIR/runs/<hash>/metrics.jsonl   one line per epoch
    DIR/runs/<hash>/result.json     how it ended

A run is written beside its place and renamed into it, so that whatever kills the process, a
folder under its final name is complete. Several processes may fill the same folder.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bouton.lab.records import Epoch, RunConfig, RunResult

_PARTIAL = ".partial"


class RunStore:
    """The runs in a folder.

    Args:
        directory: the sweep's folder; made when the first run is saved.

    Example:
        >>> store = RunStore(Path("my-sweep"))
        >>> store.directory.name
        'runs'
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "runs"

    def load(self, config: RunConfig) -> RunResult | None:
        """Reads the run of a configuration, or None where it was never made.

        Raises:
            ValueError: if the folder holds files that bouton did not write.
        """
        folder = self.directory / config.key
        if not folder.is_dir():
            return None
        try:
            result = json.loads((folder / "result.json").read_text("utf-8"))
            lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
            return RunResult(epochs=tuple(Epoch(**json.loads(line)) for line in lines), **result)
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(
                f"the run in {folder} cannot be read ({error}): delete that folder to make the run again"
            ) from error

    def save(self, config: RunConfig, result: RunResult) -> None:
        """Puts a run in its place, at once.

        Of two processes that made the same run the first wins; a failed run gives way.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        partial = self._partial_folder()
        partial.mkdir()
        lines = [_json(asdict(epoch)) + "\n" for epoch in result.epochs]
        (partial / "config.json").write_text(_json(config.to_dict(), indent=2), "utf-8")
        (partial / "metrics.jsonl").write_text("".join(lines), "utf-8")
        (partial / "result.json").write_text(_json(result.to_dict(), indent=2), "utf-8")
        final = self.directory / config.key
        present = self.load(config)
        if present is not None and present.status == "failed":
            # A folder cannot be renamed onto a full one: the failed run steps aside first.
            aside = self._partial_folder()
            final.rename(aside)
            shutil.rmtree(aside)
        try:
            partial.rename(final)
        except OSError:
            if not final.is_dir():
                raise
            shutil.rmtree(partial)

    def clean(self) -> None:
        """Removes what killed processes left half-written; such folders never count as runs."""
        for folder in self.directory.glob(f"{_PARTIAL}-*"):
            # Writing a run takes milliseconds: an hour later nobody is at it any more.
            if time.time() - folder.stat().st_mtime > 3600:
                shutil.rmtree(folder, ignore_errors=True)

    def _partial_folder(self) -> Path:
        return self.directory / f"{_PARTIAL}-{uuid.uuid4().hex}"


def write_atomically(path: Path, text: str) -> None:
    """Writes a file so that it is either the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, "utf-8")
    partial.replace(path)


def _json(value: dict[str, Any], indent: int | None = None) -> str:
    return json.dumps(value, indent=indent, sort_keys=True, allow_nan=False)
