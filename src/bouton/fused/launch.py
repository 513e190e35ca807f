"""Starting the kernels: what they are told of a weight, of its rates and of an optimizer's settings."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bouton.fused.kernels import adamw_kernel, bits_kernel, sgd_kernel
from bouton.fused.rates import SHORT, SeededRates
from bouton.tensors.draws import signed

# A program has 8 entries for each of 128 threads. A product and its sum are rounded once: the default of
# Triton 3.9, which warns that it will change.
_OPTIONS: dict[str, Any] = {"BLOCK": 1024, "enable_fp_fusion": True}


def step_sgd(
    weight: Tensor,
    gradient: Tensor,
    buffer: Tensor | None,
    group: dict[str, Any],
    rates: SeededRates,
    *,
    fresh: bool = False,
) -> None:
    """Step a weight as :class:`torch.optim.SGD` does, each synapse at its own rate.

    Args:
        weight: contiguous, in float32, bfloat16 or float16; changed.
        gradient: of the weight's shape, contiguous.
        buffer: the momentum, likewise; changed. None without momentum.
        group: the settings, as in an optimizer's ``param_groups``.
        rates: see :class:`bouton.fused.SeededRates`.
        fresh: nothing has been written to the buffer yet.
    """
    with torch.cuda.device_of(weight):
        sgd_kernel[_programs(weight, rates)](
            weight,
            gradient,
            weight if buffer is None else buffer,
            weight.numel(),
            *_seed(rates),
            float(group["lr"]),
            float(group["momentum"]),
            1.0 - group["dampening"],
            float(group["weight_decay"]),
            _sign(group),
            ODD=rates.start % 2,
            MOMENTUM=buffer is not None,
            FRESH=fresh,
            NESTEROV=group["nesterov"],
            **_OPTIONS,
        )


def step_adamw(
    weight: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    group: dict[str, Any],
    rates: SeededRates,
    *,
    step: int,
) -> None:
    """Step a weight as :class:`torch.optim.AdamW` does, each synapse at its own rate.

    Args:
        weight: contiguous, in float32, bfloat16 or float16; changed.
        gradient: of the weight's shape, contiguous.
        mean: of the gradient (``exp_avg``), likewise; changed.
        square: mean of its square (``exp_avg_sq``), likewise; changed.
        group: the settings, as in an optimizer's ``param_groups``.
        rates: see :class:`bouton.fused.SeededRates`.
        step: which step this is, from 1.
    """
    lr, (beta_1, beta_2) = group["lr"], group["betas"]
    with torch.cuda.device_of(weight):
        adamw_kernel[_programs(weight, rates)](
            weight,
            gradient,
            mean,
            square,
            weight.numel(),
            *_seed(rates),
            lr / (1.0 - beta_1**step),
            float(lr * group["weight_decay"]),
            1.0 - beta_1,
            float(beta_2),
            1.0 - beta_2,
            1.0 / math.sqrt(1.0 - beta_2**step),
            float(group["eps"]),
            _sign(group),
            ODD=rates.start % 2,
            **_OPTIONS,
        )


def draw(rates: SeededRates, drawn: Tensor) -> None:
    """Fill a contiguous ``int16`` tensor with the bits that the kernels make their rates of."""
    with torch.cuda.device_of(drawn):
        first, key_0, key_1, *_ = _seed(rates)
        bits_kernel[_programs(drawn, rates)](
            drawn, drawn.numel(), first, key_0, key_1, ODD=rates.start % 2, **_OPTIONS
        )


def _programs(tensor: Tensor, rates: SeededRates) -> tuple[int]:
    return (-(-(tensor.numel() + rates.start % 2) // _OPTIONS["BLOCK"]),)


def _seed(rates: SeededRates) -> tuple[int, int, int, float, float, float]:
    low, high = rates.bounds
    first, key_0, key_1 = (signed(number) for number in (rates.start // 2, *rates.key))
    return first, key_0, key_1, rates.nu / SHORT, low, high


def _sign(group: dict[str, Any]) -> float:
    return -1.0 if group["maximize"] else 1.0
