"""A disk that is full or a folder that cannot be written: said in one line, and nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lab_commands import LIMIT, SMALL, Ended, Fault, end, fork, runs, start, whole

from bouton.cli import main
from bouton.lab import FolderError
from bouton.lab.folder import explained

COMMAND = [*SMALL, "--seeds", "2"]


# In a mount table of its own: the command on a disk of 64 kB, again with more room, and a report with no
# right to write. One process, as each start takes seconds.
PROGRAM = """
import json, subprocess, sys
from bouton.cli import main
disk, copy, command = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
def mount(*options): subprocess.run(["mount", *options, "tmpfs", disk], check=True)
mount("-t", "tmpfs", "-o", "size=64k")
codes = [main(command)]
subprocess.run(["cp", "-r", disk, copy], check=True)
mount("-o", "remount,size=64m")
codes.append(main(command))
subprocess.run(["cp", "-r", disk, copy + "-after"], check=True)
mount("-o", "remount,ro")
codes.append(main(["report", disk]))
print(codes)
"""


def may_mount(folder: Path) -> list[str]:
    """What starts a process that may mount a tmpfs: root, or somebody who may become root inside."""
    for unshare in (["unshare", "-m"], ["unshare", "-rm"]):
        trial = [*unshare, "mount", "-t", "tmpfs", "tmpfs", str(folder)]
        if shutil.which("unshare") and subprocess.run(trial, capture_output=True).returncode == 0:
            return unshare
    pytest.skip("neither root nor a user namespace may mount a tmpfs here")


def test_on_a_small_real_disk(tmp_path):
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    command = json.dumps([*COMMAND, "--out", str(disk)])
    done = subprocess.run(
        [*may_mount(disk), sys.executable, "-c", PROGRAM, str(disk), str(copy), command],
        capture_output=True, text=True, timeout=LIMIT, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.stdout.strip().endswith("[2, 0, 2]"), done
    full, read_only = done.stderr.strip().splitlines()
    assert full.startswith(f"bouton: cannot write to {disk}/runs: the disk is full")
    assert "Free some space, or take another folder with --out; then type the same command again" in full
    before, after = runs(copy), runs(tmp_path / "copy-after")
    assert 0 < len(before) < 6 and len(whole(copy)) == len(before)
    assert after.items() > before.items() and len(whole(tmp_path / "copy-after")) == 6
    assert done.stdout.count("(made before)") == len(before)
    # A report that cannot write its page has still shown its table.
    assert read_only.startswith(f"bouton: cannot write to {disk}: it can only be read")
    assert done.stdout.count("mlp on digits") == 2


def test_wherever_the_disk_is_full_the_next_start_goes_on(tmp_path):
    """From some place on nothing can be written: in each start a little later."""
    folder, logs = tmp_path / "out", tmp_path / "logs"
    for at in range(1, 200, 6):
        before = runs(folder)
        comparison = folder / "comparison.json"
        written = comparison.read_bytes() if comparison.exists() else None
        ended = fork([*COMMAND, "--out", folder], logs, Fault("full", at, folder))
        assert runs(folder).items() >= before.items() and len(whole(folder)) == len(runs(folder))
        assert written is None or comparison.read_bytes() == written
        assert not list(folder.rglob(".partial-*"))
        if ended.code == 0:
            break
        assert ended.code == 2 and ended.err.count("\n") == 1
        assert ended.err.startswith(f"bouton: cannot write to {folder}") and "the disk is full" in ended.err
    assert ended.code == 0 and at > 20 and len(runs(folder)) == 6


def refused_before_training(ended: Ended, why: str) -> None:
    assert ended.code == 2 and ended.err.startswith("bouton: cannot write to ") and why in ended.err
    assert ended.err.count("\n") == 1 and "--out; then type the same command again" in ended.err
    assert "seed 0" not in ended.out, "found only after the first run"


def test_a_folder_that_may_not_be_written_is_found_before_training(tmp_path):
    """The real command; the folder itself can be written, that of the runs cannot."""
    sealed = tmp_path / "runs"
    sealed.mkdir()
    sealed.chmod(0o500)
    before = []
    if os.geteuid() == 0:  # whom permissions do not bind, unless this capability is gone
        if not shutil.which("setpriv"):
            pytest.skip("root may write everywhere, and there is no setpriv")
        before = ["setpriv", "--bounding-set", "-dac_override"]
    refused_before_training(end(start([*COMMAND, "--out", tmp_path], before)), "you may not write there")
    sealed.chmod(0o700)


@pytest.mark.parametrize("place", ["file", "file/below", "folder-with-runs"])
def test_a_file_in_the_way_is_found_before_training(place, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder-with-runs").mkdir()
    (tmp_path / "folder-with-runs" / "runs").touch()
    ended = fork([*COMMAND, "--out", tmp_path / place], tmp_path / "logs")
    refused_before_training(ended, "a file is where a folder must be")


def test_a_disk_that_takes_names_but_no_content_is_found_before_training(tmp_path, monkeypatch, capsys):
    """A full disk still makes empty files, such as locks."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr("bouton.lab.sweep.train", lambda *_: pytest.fail("it trains"))
    (tmp_path / "comparison.json").touch()
    code = main([*COMMAND, "--out", str(tmp_path)])
    refused_before_training(Ended(code, *capsys.readouterr()), "the disk is full")


def test_a_page_that_cannot_be_written_loses_no_run(tmp_path, capsys):
    (tmp_path / "report.html").mkdir()
    assert main([*COMMAND, "--out", str(tmp_path)]) == 2
    ended = capsys.readouterr()
    assert "a folder is where a file must be" in ended.err and ended.err.count("\n") == 1
    assert len(whole(tmp_path)) == 6 and "mlp on digits" in ended.out
    (tmp_path / "report.html").rmdir()
    assert main([*COMMAND, "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("(made before)") == 6


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full (x). Free some space"),
        (errno.EDQUOT, "your share of the disk is used up (x). Free some space"),
        (errno.EACCES, "you may not write there (x). Put that right, or take another folder with --out"),
        (errno.EROFS, "it can only be read (x). Put that right"),
        (errno.EIO, f"{os.strerror(errno.EIO)} (x). Put that right"),
    ],
)
def test_each_reason_has_its_words(number, words):
    with pytest.raises(FolderError) as caught, explained(Path("place")):
        raise OSError(number, os.strerror(number), "x")
    assert str(caught.value).startswith(f"cannot write to place: {words}")
