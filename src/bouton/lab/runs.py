"""The run folder: one folder per run, named by its configuration's hash, all or nothing.

    DIR/runs/<hash>/config.json     what was asked
    DIR/runs/<hash>/metrics.jsonl   one line per epoch
    DIR/runs/<hash>/result.json     how it ended
    DIR/runs/<hash>/SHA256SUMS      of the three, as sha256sum writes and checks them

A run is written beside its place and renamed into it, so that whatever kills the process, a
folder under its final name is complete. Several processes may fill the same folder: each claims a run
before it makes it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bouton.lab import from_json
from bouton.lab.folder import explained, locked, partial_place, prepare, write
from bouton.lab.records import Epoch, RunConfig, RunResult

CONFIG, METRICS, RESULT, SUMS = "config.json", "metrics.jsonl", "result.json", "SHA256SUMS"


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

    def prepare(self) -> None:
        """Sees that runs can be saved, and removes what killed processes left half-written.

        Raises:
            FolderError: if the folder cannot be written.
        """
        prepare(self.directory)

    def load(self, config: RunConfig) -> RunResult | None:
        """Reads the run of a configuration, or None where it was never made.

        Raises:
            ValueError: if its files are damaged, or bouton did not write them.
        """
        folder = self.directory / config.key
        while (before := self.edition(config)) is not None:
            try:
                return _read(folder, config)
            except (OSError, ValueError) as error:
                # A failed run that another process replaces right now is read once more.
                if self.edition(config) == before:
                    raise ValueError(
                        f"the run in {folder} cannot be read ({error}): delete that folder and type the "
                        "command that started the sweep; it makes this run again and no other"
                    ) from error
        return None

    def edition(self, config: RunConfig) -> tuple[int, int] | None:
        """Changes whenever the run is written; None where it was never made."""
        try:
            found = (self.directory / config.key).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_ino, found.st_mtime_ns

    @contextmanager
    def claim(self, config: RunConfig) -> Iterator[bool]:
        """Inside this context the run is this process's to make; False if another process is making it.

        Raises:
            FolderError: if the folder cannot be written.
        """
        with locked(self.directory, config.key) as mine:
            yield mine

    def save(self, config: RunConfig, result: RunResult) -> None:
        """Puts a run in its place, at once.

        Of two processes that made the same run the first wins; a failed run gives way.

        Raises:
            FolderError: if the folder cannot be written.
        """
        contents = {
            CONFIG: _json(config.to_dict(), indent=2),
            METRICS: "".join(_json(asdict(epoch)) + "\n" for epoch in result.epochs),
            RESULT: _json(result.to_dict(), indent=2),
        }
        sums = [f"{_sha256(text.encode())}  {name}\n" for name, text in contents.items()]
        partial = partial_place(self.directory)
        with explained(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            try:
                partial.mkdir()
                for name, text in (contents | {SUMS: "".join(sums)}).items():
                    write(partial / name, text)
                self._place(partial, config)
            except BaseException:  # also when interrupted: on a full disk each file counts
                shutil.rmtree(partial, ignore_errors=True)
                raise

    def _place(self, partial: Path, config: RunConfig) -> None:
        final = self.directory / config.key
        present = self.load(config)
        if present is not None and present.status == "failed":
            # A folder cannot be renamed onto a full one: the failed run steps aside first.
            aside = partial_place(self.directory)
            final.rename(aside)
            shutil.rmtree(aside)
        try:
            partial.rename(final)
        except OSError:
            if not final.is_dir():
                raise
            shutil.rmtree(partial)


def _read(folder: Path, config: RunConfig) -> RunResult:
    """Reads a run and checks that it is whole; an error names the file."""
    contents = {}
    for name in (CONFIG, METRICS, RESULT):
        with _named(name):
            contents[name] = (folder / name).read_bytes()
    with _named(SUMS):
        if (folder / SUMS).exists():  # runs from before there were sums have none
            _check_sums((folder / SUMS).read_bytes(), contents)
    with _named(CONFIG):
        if from_json.parse(contents[CONFIG].decode()) != from_json.parse(_json(config.to_dict())):
            raise ValueError("it is not the configuration that the folder is named after")
    with _named(METRICS):
        lines = [from_json.parse(line) for line in contents[METRICS].decode().splitlines()]
        epochs: tuple[Epoch, ...] = from_json.build(tuple[Epoch, ...], lines)
        if [epoch.epoch for epoch in epochs] != list(range(1, len(epochs) + 1)):
            raise ValueError("its lines are not the epochs 1, 2, ...")
    with _named(RESULT):
        result: RunResult = from_json.build(RunResult, from_json.parse(contents[RESULT].decode()))
        if result.status == "finished" and len(epochs) != config.epochs:
            raise ValueError(f"it says finished, and {METRICS} has {len(epochs)} of {config.epochs} epochs")
    return replace(result, epochs=epochs)


def _check_sums(sums: bytes, contents: dict[str, bytes]) -> None:
    written = dict(line.split()[::-1] for line in sums.decode().splitlines())
    for name, content in contents.items():
        if written.get(name) != _sha256(content):
            raise ValueError(f"{name} is not what was written: it has another SHA-256")


@contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f"{name}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _json(value: dict[str, Any], indent: int | None = None) -> str:
    return json.dumps(value, indent=indent, sort_keys=True, allow_nan=False)
