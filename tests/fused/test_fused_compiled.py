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
    command = [sys.executable, "-W", "error", str(HERE / "compile_kernels.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert not done.returncode, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_kernel_compiles_once(assembly):
    assert len(assembly) == 3 * 2 * (1 + 5)
    for made in assembly:
        assert made["compiled"] == 1, made  # whatever the step, the learning rate, the key and the start
        assert ("cvt.rn.bf16" in made["found"]) == (made["dtype"] == "torch.bfloat16"), made


def test_memory_is_read_and_written_16_bytes_at_a_time_and_no_more_than_needed(assembly):
    for made in assembly:
        if made["odd"]:
            continue
        found, settings = made["found"], made["settings"]
        assert found.keys() - {"cvt.rn.bf16"} == {"ld.global.v4.b32", "st.global.v4.b32"}, made
        vectors = 2 if made["dtype"] == "torch.float32" else 1  # for the 8 entries of a thread
        read, written = found["ld.global.v4.b32"] / vectors, found["st.global.v4.b32"] / vectors
        if settings is None:
            assert (read, written) == (4, 3), made
        else:
            momentum = bool(settings["momentum"])
            assert (read, written) == (2 + (momentum and not settings["fresh"]), 1 + momentum), made
