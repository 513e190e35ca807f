"""On a GPU: kernels against torch's operations there, and no waiting for the device."""

import copy

import pytest
import torch
from torch import nn

import bouton.fused
from bouton.fused import SeededRates
from bouton.tensors.draws import short_bits

pytest.importorskip("triton", reason="Triton is not installed")
if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)

BOTH = pytest.mark.parametrize(
    ("name", "options"),
    [("SGD", {}), ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}), ("AdamW", {})],
)
SHAPES = [(1,), (1023,), (33, 65), (64, 16, 3, 3), (2048, 1024)]


@pytest.mark.parametrize("start", [0, 7, 2**33])
@pytest.mark.parametrize("count", [1, 1025, 10**6])
def test_bits_are_those_of_the_cpu(count, start):
    from bouton.fused import launch

    drawn = torch.empty(count, dtype=torch.int16, device="cuda")
    launch.draw(SeededRates(key=(2**31 + 5, 9), nu=0.1, start=start), drawn)
    assert torch.equal(drawn.cpu(), short_bits((2**31 + 5, 9), count, start=start))


@BOTH
@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1), (torch.float16, 0.02)]
)
def test_kernels_agree_with_torch(name, options, start, dtype, tolerance, monkeypatch):
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape, device="cuda", dtype=dtype)) for shape in SHAPES]
    others = copy.deepcopy(weights)
    optimizers = [getattr(bouton.fused, name)(each, lr=0.01, **options) for each in (weights, others)]
    for optimizer, each in zip(optimizers, (weights, others), strict=True):
        optimizer.rates.update(
            {weight: SeededRates((1, place), 0.5, (0.6, 2.0), start) for place, weight in enumerate(each)}
        )
    for _ in range(20):
        for weight, other in zip(weights, others, strict=True):
            weight.grad = torch.randn_like(weight)
            other.grad = weight.grad.clone()
        optimizers[0].step()
        with monkeypatch.context() as patch:
            patch.setattr("bouton.fused.stepping._DEVICES", set())
            optimizers[1].step()
    assert optimizers[0].path == f"Triton: {len(SHAPES)}"
    for weight, other in zip(weights, others, strict=True):
        torch.testing.assert_close(weight, other, rtol=tolerance, atol=tolerance)


@BOTH
def test_nothing_waits_for_the_device(name, options):
    weight = nn.Parameter(torch.randn(64, 64, device="cuda"))
    optimizer = getattr(bouton.fused, name)([weight], **options)
    optimizer.rates[weight] = SeededRates(key=(1, 2), nu=0.1)
    weight.grad = torch.ones_like(weight)
    optimizer.step()  # compiles the kernel, and makes the state
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert optimizer.path == "Triton: 1"
