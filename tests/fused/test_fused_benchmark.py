"""The benchmark of the fused update: all of it that needs no GPU."""

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fused_update.py"


@pytest.fixture
def benchmark():
    spec = importlib.util.spec_from_file_location("fused_update", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_ratios_of_a_small_weight(on_cpu, benchmark, monkeypatch, name):
    monkeypatch.setattr(benchmark, "REPETITIONS", 2)
    row = benchmark.measured(name, torch.float32, 40, torch.device("cpu"), seconds)
    assert row["bytes"] == 40 * 4 * {"SGD": 5, "AdamW": 7}[name]
    for middle, low, high in (row["share_of_copy"], row["ratio_to_torch_fused"]):
        assert 0 < low <= middle <= high


def test_where_the_kernels_are_not_used_nothing_is_measured(benchmark):
    with pytest.raises(RuntimeError, match="not used: torch, for the weight is on cpu"):
        benchmark.measured("SGD", torch.float32, 40, torch.device("cpu"), seconds)


def test_without_a_gpu_it_says_so():
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stderr == "no GPU: the fused update cannot be measured on this machine\n"
