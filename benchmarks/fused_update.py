"""Bandwidth of the fused update on a GPU, as a share of that of a plain copy of the same bytes.

    python benchmarks/fused_update.py

SGD with momentum and AdamW, float32 and bfloat16, 10 million to 1 billion weights in one tensor. For each,
three things take turns: a step of bouton.fused with seeded rates, a step of torch's own optimizer with
fused=True and without rates, and a device copy that moves as many bytes as the update must: reading weight,
gradient and moments, writing weight and moments. Times are those of the device (CUDA events), with the host
far ahead. Printed and written to benchmarks/results/fused-update-<gpu>.json: medians of the paired ratios,
each with its range over the middle half of the repetitions. Without a GPU, or without Triton, it says so
and ends with exit status 2.
"""

from __future__ import annotations

import importlib.util
import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bouton.fused

BUDGET = 0.85  # of the bandwidth of a copy
COUNTS = [10**7, 10**8, 10**9]
DTYPES = [torch.float32, torch.bfloat16]
MOMENTS = {"SGD": 1, "AdamW": 2}  # tensors of the weight's size that the optimizer keeps
OPTIONS: dict[str, dict[str, Any]] = {"SGD": {"lr": 0.01, "momentum": 0.9}, "AdamW": {"lr": 1e-4}}
WARM_UP, REPETITIONS, STEPS = 3, 25, 10
AHEAD = 20_000_000  # cycles that the device waits, so that the host is ahead of it

Timer = Callable[[Callable[[], object]], float]


def main() -> None:
    """Measure, print and write."""
    if not torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        missing = "no GPU" if not torch.cuda.is_available() else "Triton is not installed"
        print(f"{missing}: the fused update cannot be measured on this machine", file=sys.stderr)
        sys.exit(2)
    device = torch.device("cuda")
    rows, left_out = [], []
    for name in OPTIONS:
        for dtype in DTYPES:
            for count in COUNTS:
                about = {"optimizer": name, "dtype": str(dtype).removeprefix("torch."), "weights": count}
                free = torch.cuda.mem_get_info()[0]
                if (needed := bytes_needed(name, dtype, count)) > 0.9 * free:
                    left_out.append({**about, "reason": f"needs {needed / 1e9:.0f} GB"})
                    print(f"{about}: left out, {left_out[-1]['reason']} of {free / 1e9:.0f} GB")
                    continue
                rows.append({**about, **measured(name, dtype, count, device, seconds_on_device)})
                print(rows[-1])
                torch.cuda.empty_cache()
    write(rows, left_out)


def bytes_moved(name: str, dtype: torch.dtype, count: int) -> int:
    """What an update must read and write."""
    return (3 + 2 * MOMENTS[name]) * count * dtype.itemsize


def bytes_needed(name: str, dtype: torch.dtype, count: int) -> int:
    """What two optimizers with a weight and a gradient each, and the copy, take together."""
    return 2 * (2 + MOMENTS[name]) * count * dtype.itemsize + bytes_moved(name, dtype, count)


def measured(
    name: str, dtype: torch.dtype, count: int, device: torch.device, timed: Timer
) -> dict[str, Any]:
    """The ratios for one size."""
    fused = step_of(getattr(bouton.fused, name), dtype, count, device, rates=True)
    plain = step_of(getattr(torch.optim, name), dtype, count, device, rates=False)
    moved = bytes_moved(name, dtype, count)
    source = torch.zeros(moved // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds: dict[str, list[float]] = {"fused": [], "plain": [], "copy": []}
    for repetition in range(WARM_UP + REPETITIONS):
        for kind, call in {
            "fused": fused,
            "plain": plain,
            "copy": lambda: target.copy_(source),
        }.items():
            taken = timed(call)
            if repetition >= WARM_UP:
                seconds[kind].append(taken)
    pairs = list(zip(seconds["fused"], seconds["plain"], seconds["copy"], strict=True))
    return {
        "share_of_copy": spread([copy / update for update, _, copy in pairs]),
        "ratio_to_torch_fused": spread([update / step for update, step, _ in pairs]),
        "bytes": moved,
        "gigabytes_per_second": round(moved / statistics.median(seconds["fused"]) / 1e9, 1),
        "copy_gigabytes_per_second": round(moved / statistics.median(seconds["copy"]) / 1e9, 1),
    }


def step_of(
    kind: type[torch.optim.Optimizer], dtype: torch.dtype, count: int, device: torch.device, *, rates: bool
) -> Callable[[], object]:
    """The step of an optimizer of one weight."""
    weight = nn.Parameter(torch.full((count,), 0.5, dtype=dtype, device=device))
    weight.grad = torch.full_like(weight, 1e-3)
    options = OPTIONS[kind.__name__]
    if not rates:
        return kind([weight], fused=True, **options).step  # type: ignore[call-arg]
    optimizer: Any = kind([weight], **options)  # type: ignore[call-arg]
    optimizer.rates[weight] = bouton.fused.SeededRates(key=(1, 2), nu=0.16, clip=(0.5, 2.0))
    optimizer.step()
    if optimizer.path != "Triton: 1":
        raise RuntimeError(f"the kernels were not used: {optimizer.path}")
    return optimizer.step  # type: ignore[no-any-return]


def seconds_on_device(call: Callable[[], object]) -> float:
    """How long the device takes for one ``call``."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(AHEAD)
    start.record()
    for _ in range(STEPS):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / STEPS


def spread(values: list[float]) -> list[float]:
    """Median, and the range of the middle half."""
    low, middle, high = statistics.quantiles(values, n=4)
    return [round(value, 4) for value in (middle, low, high)]


def write(rows: list[dict[str, Any]], left_out: list[dict[str, Any]]) -> None:
    """Write what was measured, with the machine and the command."""
    import triton

    gpu = torch.cuda.get_device_name()
    found = {
        "command": "python benchmarks/fused_update.py",
        "gpu": gpu,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "repetitions": REPETITIONS,
        "steps_per_repetition": STEPS,
        "budget_share_of_copy": BUDGET,
        "rows": rows,
        "left_out": left_out,
        "below_budget": [row for row in rows if row["share_of_copy"][0] < BUDGET],
    }
    slug = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    file = Path(__file__).parent / "results" / f"fused-update-{slug}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written to {file}; {len(found['below_budget'])} of {len(rows)} below {BUDGET:.0%} of a copy")


if __name__ == "__main__":
    main()
