"""The command `bouton bench`, from what is typed to the file that it writes."""

from __future__ import annotations

import gc

import pytest
import torch

from bouton.cli import main
from bouton.lab.bench import read_records

USER = """
import torch
from torch import nn

def make_model(dataset):
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, dataset.classes))

def make_data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, generator=generator)
    y = (x.sum(1) > 0).long()
    return x[:30], y[:30], x[30:], y[30:]
"""
SHORT = ["--seconds", "0.01", "--precision", "10"]


def test_the_users_own_model(user_file, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    file, out = user_file(USER), tmp_path / "made" / "result.json"
    sources = ["--model", f"{file}:make_model", "--data", f"{file}:make_data"]
    threads = torch.get_num_threads()
    settings = ["--batch-size", "64", "--optimizer", "AdamW", "--threads", "2", "--mechanisms", "Grapes"]
    assert main(["bench", *sources, *settings, *SHORT, "--out", str(out)]) == 0
    assert torch.get_num_threads() == threads == 1 and gc.isenabled()
    (record,) = read_records(out)
    assert [arm.name for arm in record.arms] == ["plain against plain", "Grapes"]
    assert record.threads == 2 and record.parameters == 6 * 8 + 8 + 8 * 2 + 2
    assert "batch 30, adamw" in record.summary  # there are no more samples
    assert (
        record.command.startswith("bouton bench --model ") and record.machine["torch"] == torch.__version__
    )
    shown = capfd.readouterr()
    assert "plain against plain" in shown.out and "0 parameters" not in shown.out
    assert shown.err == ""


def test_some_mechanisms_on_a_workload_with_its_budgets(tmp_path, capsys):
    out = tmp_path / "result.json"
    asked = ["--mechanisms", "PlasticityDiversity", "Grapes(clip=None)", "SpineRemodeling"]
    assert main(["bench", *asked, *SHORT, "--out", str(out)]) == 0
    (record,) = read_records(out)
    assert record.workload == "mlp" and "batch 64, momentum, learning rate 0.01" in record.summary
    assert [arm.budget for arm in record.arms] == [None, 1.05, None, 1.01]
    assert [len(arm.measured.parts) for arm in record.arms] == [1, 1, 1, 2]
    assert record.arms[1].measured.weights == 784 * 256 + 256 * 256 + 256 * 10
    assert "plain against plain" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--workload", "mpl"], "expected mlp, resnet18, transformer, gpt2"),
        (["--model", "mlp"], "type both --model and --data"),
        (["--workload", "mlp", "--model", "mlp", "--data", "digits"], "leave out --model and --data"),
        (["--model", "net.py:make_model", "--data", "digits"], "no Python file 'net.py'"),
        (["--mechanisms", "Grape"], "Did you mean Grapes?"),
        (["--mechanisms", "MultiSynapse(gamma=3)"], "MultiSynapse"),
        (["--optimizer", "sdg"], "expected sgd, momentum"),
        (["--lr", "nan"], "lr must be a positive number"),
        (["--batch-size", "0"], "batch_size must be 1 or more"),
        (["--device", "tpu"], "expected cpu or cuda"),
        (["--dtype", "float8"], "expected float32, bfloat16"),
        (["--threads", "0"], "threads must be 1 or more"),
        (["--seconds", "0"], "seconds must be a positive number"),
        (["--precision", "-1"], "precision must be a positive number"),
        (["--mechanisms", "Grapes", "--out", "/proc/no/result.json"], "cannot write to /proc/no"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_measured(typed, message, capsys):
    assert main(["bench", *typed]) == 2
    shown = capsys.readouterr()
    assert message in shown.err and shown.err.count("\n") == 1
    assert shown.out == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_named(capsys):
    assert main(["bench", "--device", "cuda"]) == 2
    assert "no CUDA device here" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda(tmp_path):
    out = tmp_path / "result.json"
    typed = ["--device", "cuda", "--dtype", "bfloat16", "--mechanisms", "PlasticityDiversity"]
    assert main(["bench", *typed, *SHORT, "--out", str(out)]) == 0
    (record,) = read_records(out)
    assert "gpu" in record.machine and record.arms[1].measured.state > 0
