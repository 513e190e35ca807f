"""The command `bouton` in processes of its own: as a user starts it, and, much faster, as a fork.

A fork comes from a server process that has imported everything once (multiprocessing's "forkserver"); from
there on it is the same command. In a fork a fault can be set: something that happens at one of the places
where the command touches files of a folder.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bouton.lab.comparison import FILE, read_comparison
from bouton.lab.records import RunConfig, RunResult
from bouton.lab.runs import RunStore

LIMIT = 120  # seconds after which a command that does not end is a failure
SMALL = ["compare", "--data", "digits", "--samples", "64", "--mechanisms", "Grapes", "--epochs", "1"]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "bouton.cli",
        "bouton.lab",
        "torch._dynamo",
        "tyro.extras",
        "sklearn.datasets",
        "sklearn.model_selection",
    ]
)


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (negative: the signal) and what it wrote."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Fault:
    """What happens at the `at`-th time, counted from 1, that files of a folder are touched.

    `kind` is "kill", "interrupt" (Ctrl-C) or "full": from then on nothing more can be written.
    """

    kind: str
    at: int
    folder: Path


def start(arguments: Sequence[object], before: Sequence[str] = ()) -> subprocess.Popen[str]:
    """Starts the command as a user does; `before` goes before it, as `setpriv ...` would."""
    return subprocess.Popen(
        [*before, sys.executable, "-m", "bouton.cli", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def end(process: subprocess.Popen[str]) -> Ended:
    out, err = process.communicate(timeout=LIMIT)
    return Ended(process.returncode, out, err)


class Fork:
    """The command in a fork."""

    def __init__(self, arguments: Sequence[object], logs: Path, fault: Fault | None = None) -> None:
        logs.mkdir(exist_ok=True)
        self._logs = [logs / f"{len(list(logs.iterdir()))}-{name}" for name in ("out", "err")]
        typed = [str(argument) for argument in arguments]
        self._process = _context.Process(target=_main, args=(typed, *self._logs, fault), daemon=True)
        self._process.start()

    @property
    def out(self) -> str:
        return self._logs[0].read_text() if self._logs[0].exists() else ""

    def send(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def end(self) -> Ended:
        self._process.join(LIMIT)
        assert self._process.exitcode is not None, "it does not end"
        return Ended(self._process.exitcode, self.out, self._logs[1].read_text())


def fork(arguments: Sequence[object], logs: Path, fault: Fault | None = None) -> Ended:
    """Runs the command in a fork until it ends."""
    return Fork(arguments, logs, fault).end()


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.01)


def runs(folder: Path) -> dict[str, dict[str, bytes]]:
    """The files of each run that is there; half-written ones do not count."""
    return {
        run.name: {path.name: path.read_bytes() for path in run.iterdir()}
        for run in folder.glob("runs/[!.]*")
    }


def whole(folder: Path) -> list[RunResult]:
    """The results in a folder, read and checked; each run that is there must be one of its comparison's."""
    there = runs(folder)
    if not (folder / FILE).exists():
        assert not there
        return []
    results = list(read_comparison(folder).results(RunStore(folder)).values())
    assert len(results) == len(there)
    return results


def is_free(store: RunStore, config: RunConfig) -> bool:
    """Whether no process is making the run."""
    with store.claim(config) as mine:
        return mine


def left_behind(folder: Path) -> list[Path]:
    """Locks and half-written files."""
    return [path for path in folder.rglob(".*") if path.name.startswith((".lock-", ".partial-"))]


def _main(arguments: list[str], out: Path, err: Path, fault: Fault | None) -> None:
    for path, number in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    if fault is not None:
        _set(fault)
    from bouton.cli import main

    sys.exit(main(arguments))


def _set(fault: Fault) -> None:
    count = 0

    def touch(path: object, *, writes: bool) -> None:
        nonlocal count
        if not isinstance(path, str | os.PathLike) or not os.fspath(path).startswith(str(fault.folder)):
            return
        if fault.kind == "full" and not writes:
            return
        count += 1
        if fault.kind == "full" and count >= fault.at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))
        if count == fault.at:
            os.kill(os.getpid(), signal.SIGKILL if fault.kind == "kill" else signal.SIGINT)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            flags = arguments[2]
            touch(arguments[0], writes=isinstance(flags, int) and bool(flags & os.O_CREAT))
        elif event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            touch(arguments[0], writes=event == "os.mkdir")

    fsync = os.fsync

    def watched(descriptor: int) -> None:
        touch(fault.folder, writes=True)
        fsync(descriptor)

    os.fsync = watched  # no audit event tells of it
    sys.addaudithook(hook)
