"""Fused steps of weights that several processes hold in parts."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import bouton

TRITON = pytest.mark.skipif(
    not importlib.util.find_spec("triton"),
    reason="Triton is not installed; make test does that on Linux x86-64",
)


@pytest.mark.parametrize("devices", [[], pytest.param(["cpu"], marks=TRITON)])
def test_each_process_has_the_rates_of_its_part(devices):
    paths = [str(Path(bouton.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "TRITON_INTERPRET": "1",
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = Path(__file__).with_name("sharded_run.py")
    done = subprocess.run([*command, script, *devices], capture_output=True, text=True, env=environment)
    assert not done.returncode, done.stderr
    way = "Triton: 1" if devices else "torch, for the weight is on cpu: 1"
    assert done.stdout.splitlines() == [f"SGD: {way}", f"AdamW: {way}"]
