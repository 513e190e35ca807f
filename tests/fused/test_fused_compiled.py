"""The kernels as compiled for a GPU: that needs none, and shows what the interpreter cannot."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import bouton

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def assembly(tmp_path_factory):
    pytest.importorskip("triton", reason="Triton is not installed; make test does that on Linux x86-64")
    paths = [str(Path(bouton.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")),
    }
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-W", "error", str(HERE / "compile_kernels.py"), "90"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert not done.returncode, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_kernel_compiles(assembly):
    assert len(assembly) == 3 * 2 * (8 + 1)
    for made in assembly:
        assert ("cvt.rn.bf16" in str(made)) == (made["dtype"] == "bf16"), made


def test_memory_is_read_and_written_16_bytes_at_a_time(assembly):
    for made in assembly:
        touched = {name for name in made if name.startswith(("ld.", "st."))}
        if not made["odd"]:
            assert touched == {"ld.global.v4.b32", "st.global.v4.b32"}, made


def test_nothing_is_read_that_is_not_needed(assembly):
    for made in assembly:
        if made["odd"]:
            continue
        entries = 8 // {"fp32": 4, "bf16": 8, "fp16": 8}[made["dtype"]]  # vectors for a thread's 8 entries
        read, written = made["ld.global.v4.b32"] / entries, made["st.global.v4.b32"] / entries
        if made["kernel"] == "adamw_kernel":
            assert (read, written) == (4, 3)
        else:
            old = made["MOMENTUM"] and not made["FRESH"]
            assert (read, written) == (2 + old, 1 + made["MOMENTUM"]), made
