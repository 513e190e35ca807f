"""The loops in C are compiled once; without a compiler there are none, and a broken one is warned of."""

import os
import shutil
import subprocess
import sys
import warnings

import pytest
import torch

from bouton.native import library as module


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """Compile anew, into a folder of its own, and without making fast code, which takes seconds."""
    monkeypatch.setattr(module, "_FLAGS", [flag for flag in module._FLAGS if flag != "-O3"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("BOUTON_NATIVE", raising=False)
    return module.library.__wrapped__, tmp_path / "bouton" / "native"


def test_compiled_once(fresh, monkeypatch):
    library, folder = fresh
    assert library() is not None
    (made,) = folder.iterdir()
    monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: pytest.fail("compiled again"))
    assert library() is not None
    assert list(folder.iterdir()) == [made]


def test_made_for_oneself_whatever_others_may_do_by_default(fresh):
    library, folder = fresh
    mask = os.umask(0)
    try:
        assert library() is not None and library() is not None
    finally:
        os.umask(mask)
    assert [path.stat().st_mode & 0o77 for path in (folder, *folder.iterdir())] == [0, 0]


def test_another_source_is_compiled_again(fresh, monkeypatch, tmp_path):
    library, folder = fresh
    library()
    changed = tmp_path / "changed"
    shutil.copytree(module.FOLDER, changed)
    with (changed / "common.h").open("a") as file:
        file.write("\n// changed\n")
    monkeypatch.setattr(module, "FOLDER", changed)
    assert library() is not None
    assert len(list(folder.iterdir())) == 2


def test_processes_may_compile_at_the_same_time(fresh):
    _, folder = fresh
    code = "from bouton.native.library import library; assert library() is not None"
    several = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [process.wait(120) for process in several] == [0, 0, 0]
    assert len(list(folder.iterdir())) == 1


def test_no_compiler_no_loops(fresh, monkeypatch):
    library, folder = fresh
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert library() is None
    assert not folder.exists()


def test_turned_off(fresh, monkeypatch):
    library, folder = fresh
    monkeypatch.setenv("BOUTON_NATIVE", "0")
    assert library() is None
    assert not folder.exists()


@pytest.mark.parametrize(
    "broken", ["compiler", "quotes", "folder", "open folder", "open file", "library", "another library"]
)
def test_what_fails_is_warned_of(fresh, monkeypatch, tmp_path, broken):
    library, folder = fresh
    if broken == "compiler":
        monkeypatch.setenv("CC", "false")
    elif broken == "quotes":
        monkeypatch.setenv("CC", 'gcc"')
    elif broken == "folder":
        folder.parent.mkdir(parents=True)
        folder.touch()
    elif broken.startswith("open"):
        library()
        (folder if broken == "open folder" else next(folder.iterdir())).chmod(0o777)
    elif broken == "another library":
        other = torch._C.__file__  # which has none of the functions
        monkeypatch.setattr(module, "_compiled", lambda *_: other)
    else:
        made = tmp_path / "kernels.so"
        made.write_text("no library")
        monkeypatch.setattr(module, "_compiled", lambda *_: made)
    with pytest.warns(UserWarning, match="BOUTON_NATIVE=0"):
        assert library() is None
