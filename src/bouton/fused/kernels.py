"""The update and its scaling in one pass over a weight, in Triton.

Imported where a weight on a GPU is stepped, and nowhere else: Triton is no requirement of the package.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

import triton
import triton.language as tl

from bouton.tensors.draws import FACTORS, signed

_F0, _F1, _F2 = (tl.constexpr(signed(factor)) for factor in FACTORS)

# Numbers that differ from weight to weight or from step to step: no kernel is compiled for one of them. The
# count is none of these: a kernel for counts that 16 divides reads and writes 16 bytes at a time.
_SEED = ["first", "key_0", "key_1", "spread", "low", "high"]
_SGD = ["lr", "momentum", "gain", "decay", "sign"]
_ADAMW = ["step_size", "decay", "gain", "beta_2", "gain_2", "root", "eps", "sign"]


@triton.jit
def _mixed(x, shift: tl.constexpr):
    return x ^ (x >> shift)


@triton.jit
def _drawn(first, key_0, key_1, BLOCK: tl.constexpr):
    """Random bits of places of which the first is even; see :func:`bouton.tensors.draws.short_bits`."""
    # sums and products are meant to overflow, also where Triton is told to look for that
    x = tl.mul(tl.program_id(0), BLOCK // 2, sanitize_overflow=False) + tl.arange(0, BLOCK // 2)
    x = tl.add(x, first, sanitize_overflow=False)
    x = tl.mul(_mixed(x ^ key_0, 16), _F0, sanitize_overflow=False) ^ key_1
    x = tl.mul(_mixed(x, 15), _F1, sanitize_overflow=False)
    x = tl.mul(_mixed(x, 16), _F2, sanitize_overflow=False)
    return tl.reshape(tl.join((x << 16) >> 16, x >> 16), [BLOCK])  # the lower half is the even place


@triton.jit
def _rates(first, key_0, key_1, spread, low, high, BLOCK: tl.constexpr):
    drawn = _drawn(first, key_0, key_1, BLOCK).to(tl.float32)
    return tl.minimum(tl.maximum(1.0 + spread * drawn, low), high)


@triton.jit
def _places(count, ODD: tl.constexpr, BLOCK: tl.constexpr):
    """Where a block's entries lie, and which are there: an odd start leaves one place before the first."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK) - ODD
    inside = at < count
    if ODD:
        inside = inside & (at >= 0)
    return at, inside


@triton.jit(do_not_specialize=["first", "key_0", "key_1"])
def bits_kernel(drawn, count, first, key_0, key_1, ODD: tl.constexpr, BLOCK: tl.constexpr):
    """What rates are made of, for the tests."""
    at, inside = _places(count, ODD, BLOCK)
    tl.store(drawn + at, _drawn(first, key_0, key_1, BLOCK).to(tl.int16), mask=inside)


@triton.jit(do_not_specialize=[*_SEED, *_SGD])
def sgd_kernel(
    weights,
    gradients,
    buffers,
    count,
    first,
    key_0,
    key_1,
    spread,
    low,
    high,
    lr,
    momentum,
    gain,
    decay,
    sign,
    ODD: tl.constexpr,
    MOMENTUM: tl.constexpr,
    FRESH: tl.constexpr,
    NESTEROV: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One step of SGD on a block."""
    at, inside = _places(count, ODD, BLOCK)
    weight = tl.load(weights + at, mask=inside).to(tl.float32)
    pull = tl.load(gradients + at, mask=inside).to(tl.float32) * sign + decay * weight
    if MOMENTUM:
        buffer = pull
        if not FRESH:
            buffer = momentum * tl.load(buffers + at, mask=inside).to(tl.float32) + gain * pull
        tl.store(buffers + at, buffer.to(buffers.dtype.element_ty), mask=inside)
        pull = pull + momentum * buffer if NESTEROV else buffer
    rate = _rates(first, key_0, key_1, spread, low, high, BLOCK)
    tl.store(weights + at, (weight - rate * (lr * pull)).to(weights.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=[*_SEED, *_ADAMW])
def adamw_kernel(
    weights,
    gradients,
    means,
    squares,
    count,
    first,
    key_0,
    key_1,
    spread,
    low,
    high,
    step_size,
    decay,
    gain,
    beta_2,
    gain_2,
    root,
    eps,
    sign,
    ODD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One step of AdamW on a block."""
    at, inside = _places(count, ODD, BLOCK)
    weight = tl.load(weights + at, mask=inside).to(tl.float32)
    gradient = tl.load(gradients + at, mask=inside).to(tl.float32) * sign
    mean = tl.load(means + at, mask=inside).to(tl.float32)
    square = tl.load(squares + at, mask=inside).to(tl.float32)
    mean = mean + gain * (gradient - mean)
    square = beta_2 * square + gain_2 * gradient * gradient
    tl.store(means + at, mean.to(means.dtype.element_ty), mask=inside)
    tl.store(squares + at, square.to(squares.dtype.element_ty), mask=inside)
    # the precise root, because the fast one takes the smallest numbers for 0
    pull = decay * weight + step_size * mean / (root * tl.sqrt_rn(square) + eps)
    rate = _rates(first, key_0, key_1, spread, low, high, BLOCK)
    tl.store(weights + at, (weight - rate * pull).to(weights.dtype.element_ty), mask=inside)
