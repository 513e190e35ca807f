"""Arbitrary numbers of every precision, and all mechanisms by their site, for property-based tests."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

import bouton

EXAMPLES = {
    f"{name}-{number}": mechanism
    for name, entry in bouton.registry().items()
    for number, mechanism in enumerate(entry.examples)
}
ON_STEPS = {name: m for name, m in EXAMPLES.items() if m.site in ("rate", "structure")}
ON_PASSES = {name: m for name, m in EXAMPLES.items() if name not in ON_STEPS}

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def numbers(dtype, size, largest=None, finite=True):
    """Tensors of ``size`` numbers up to ``largest``: zeros, denormals and the ends of the range too."""
    limits = torch.finfo(dtype)
    largest = limits.max if largest is None else largest
    special = [
        0.0,
        -0.0,
        1.0,
        limits.smallest_normal,
        limits.smallest_normal * limits.eps,
        largest,
        -largest,
    ]
    if not finite:
        special += [torch.inf, -torch.inf, torch.nan]
    drawn = st.floats(-largest, largest, width=64) | st.sampled_from(special)
    # half of them of the size of trained weights, where an arithmetic error is not hidden by an overflow
    ordinary = st.floats(-min(2.0, largest), min(2.0, largest), width=16)
    values = st.lists(ordinary | drawn, min_size=size, max_size=size)
    return values.map(lambda row: torch.tensor(row, dtype=torch.float64).to(dtype))
