"""Writing in a sweep's folder: whole files only, one process at a time, and errors that say what to do."""

from __future__ import annotations

import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

_PARTIAL = ".partial-"
_LOCK = ".lock-"
_ABANDONED = 3600  # seconds; writing takes milliseconds: an hour later nobody is at it any more

_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "your share of the disk is used up"}
_CLOSED = {
    errno.EACCES: "you may not write there",
    errno.EPERM: "you may not write there",
    errno.EROFS: "it can only be read",
    errno.ENOTDIR: "a file is where a folder must be",
    errno.EEXIST: "a file is where a folder must be",
    errno.EISDIR: "a folder is where a file must be",
    errno.ENOTEMPTY: "a folder is where a file must be",
}


class FolderError(OSError):
    """A sweep's folder cannot be written; the message says why and what to do."""


@contextmanager
def explained(folder: Path, otherwise: str = "take another folder with --out") -> Iterator[None]:
    """Inside this context, what keeps a folder from being written becomes a `FolderError`.

    Args:
        folder: what is written.
        otherwise: what the user can do instead of putting that folder right.
    """
    try:
        yield
    except FolderError:
        raise
    except OSError as error:
        if error.errno in _FULL:
            why, remedy = _FULL[error.errno], "Free some space"
        else:
            why, remedy = _CLOSED.get(error.errno or 0, error.strerror or str(error)), "Put that right"
        place = f" ({error.filename})" if error.filename else ""
        raise FolderError(
            f"cannot write to {folder}: {why}{place}. {remedy}, or {otherwise}; then type the same command "
            "again: it goes on where it was"
        ) from error


def write(path: Path, text: str) -> None:
    """Writes a file to the disk itself: what the system still held back could fail later, unseen."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, text: str) -> None:
    """Writes a file so that it is either the old one or the new one, never a part.

    Raises:
        FolderError: if it cannot be written.
    """
    with explained(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_place(path.parent)
        try:
            write(partial, text)
            partial.replace(path)
        except BaseException:  # also when interrupted: on a full disk each file counts
            partial.unlink(missing_ok=True)
            raise


def partial_place(folder: Path) -> Path:
    """A place of its own for what is to be renamed into its place once it is whole."""
    return folder / f"{_PARTIAL}{uuid.uuid4().hex}"


@contextmanager
def locked(folder: Path, name: str, *, wait: bool = False) -> Iterator[bool]:
    """Inside this context, no other process has the lock of that name in the folder.

    The system takes the lock back from a process that dies, however it dies.

    Args:
        folder: where the lock's file lies; made if it is not there.
        name: of what is locked.
        wait: until another process gives the lock back.

    Yields:
        False if another process has it and `wait` is off.

    Raises:
        FolderError: if the lock's file cannot be made.
    """
    path = folder / f"{_LOCK}{name}"
    lock = FileLock(path)
    try:
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with suppress(Timeout):
                lock.acquire(blocking=wait)
        yield lock.is_locked
    finally:
        if lock.is_locked:  # also when interrupted before it was known here
            with suppress(OSError):  # an empty file that stays does no harm
                path.unlink()  # while it is held: who has it open already sees that it is gone
            lock.release()


def prepare(folder: Path) -> None:
    """Makes a folder, sees that it can be written, and removes what killed processes left there.

    What they left half-written never counts; it only takes space.

    Raises:
        FolderError: if the folder cannot be written.
    """
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        trial = partial_place(folder)
        try:
            trial.mkdir()
            write(trial / "trial", "Can be removed.\n")
        finally:
            shutil.rmtree(trial, ignore_errors=True)
    for path in folder.glob(f"{_PARTIAL}*"):
        try:
            age = time.time() - path.stat().st_mtime
        except FileNotFoundError:  # another process was faster
            continue
        if age > _ABANDONED:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    for path in folder.glob(f"{_LOCK}*"):
        with locked(folder, path.name.removeprefix(_LOCK)):  # removes it, unless another process has it
            pass
