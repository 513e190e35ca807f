"""Counter-based random numbers: the same on every device and in every process, and cheap to make again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from bouton.tensors.scratch import PIECE, scratch

Key = tuple[int, int]  # two numbers of 32 bits

FACTORS = (0x7FEB352D, 0x846CA68B, 0x9E3779B1)


def bits(key: Key, count: int, device: torch.device | str = "cpu", start: int = 0) -> Tensor:
    r"""Random bits ``int32 [count]``: number ``start + i`` of the sequence that ``key`` names.

    Each number is a hash of its place in the sequence alone, so that any part can be made without the rest,
    on any device, and is the same to the bit. The sequence repeats after 2**32 numbers.

    .. math:: x_0 = i \oplus k_0, \quad x_1 = c_1 S_{16}(x_0) \oplus k_1, \quad
       x_2 = c_2 S_{15}(x_1), \quad x_3 = c_3 S_{16}(x_2), \qquad S_n(x) = x \oplus (x \gg n)

    modulo 2**32, with arithmetic shifts.

    When not to use it: for secrets. It is fast, and not cryptographic.

    Example:
        >>> bool((bits((1, 2), 8)[3:5] == bits((1, 2), 2, start=3)).all())
        True
    """
    return _fill(torch.empty(count, dtype=torch.int32, device=device), key, start)


def _fill(made: Tensor, key: Key, start: int) -> Tensor:
    count, device = len(made), made.device
    piece = min(count, PIECE) if made.is_cpu else count
    shifted = scratch("shifted", made[:piece])
    places = _counted(PIECE) if made.is_cpu else torch.arange(piece, dtype=torch.int32, device=device)
    for begin in range(0, count, max(piece, 1)):
        x = made[begin : begin + piece]
        shift = shifted[: len(x)]
        torch.add(places[: len(x)], signed(start + begin), out=x)
        x.bitwise_xor_(signed(key[0]))
        torch.bitwise_right_shift(x, 16, out=shift)
        x.bitwise_xor_(shift).mul_(signed(FACTORS[0])).bitwise_xor_(signed(key[1]))
        torch.bitwise_right_shift(x, 15, out=shift)
        x.bitwise_xor_(shift).mul_(signed(FACTORS[1]))
        torch.bitwise_right_shift(x, 16, out=shift)
        x.bitwise_xor_(shift).mul_(signed(FACTORS[2]))
    return made


def short_bits(key: Key, count: int, device: torch.device | str = "cpu", start: int = 0) -> Tensor:
    """Random bits ``int16 [count]``: the lower and the upper half of each number of :func:`bits`."""
    first = start // 2
    halves = bits(key, (start + count + 1) // 2 - first, device, first).view(torch.int16)
    return halves[start - 2 * first :][:count]


def uniform(
    key: Key,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    start: int = 0,
    low: float = 0.0,
    high: float = 1.0,
) -> Tensor:
    """Draws from U[low, high) of 24 bits, all of which float32 holds in U[0, 1)."""
    made = torch.empty(math.prod(shape), dtype=dtype, device=device)
    drawn = made.copy_(_fill(scratch("bits", made, torch.int32), key, start).bitwise_right_shift_(8))
    return drawn.mul_((high - low) * 2.0**-24).add_((low + high) / 2).reshape(tuple(shape))


def normal(
    key: Key, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu", start: int = 0
) -> Tensor:
    """Draws from N(0, 1) by the method of Box and Muller; beyond 5.9 in size there are none.

    Logarithm and cosine round differently from device to device: equal to about 1e-6.
    """
    count = math.prod(shape)
    drawn = uniform(key, (count, 2), dtype, device, 2 * start)
    radius = drawn[:, 0].neg().add_(1).log_().mul_(-2).sqrt_()
    return radius.mul_(drawn[:, 1].mul(2 * math.pi).cos_()).reshape(tuple(shape))


@cache
def _counted(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.int32, device="cpu")


def signed(number: int) -> int:
    """A number modulo 2**32 as int32 holds it."""
    return (number + 2**31) % 2**32 - 2**31
