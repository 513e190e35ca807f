"""Nested tensors: samples of different lengths in one tensor, for which torch has few operations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def samples(tensor: Tensor) -> tuple[Tensor, ...]:
    """The ordinary tensors that a nested one consists of; any other one is itself.

    A ``TransformerEncoder`` makes nested tensors of padded sequences in evaluation.
    """
    if not tensor.is_nested:
        return (tensor,)
    # jagged: all samples are one after another in one tensor
    return (tensor.values(),) if tensor.layout == torch.jagged else tensor.unbind()


def each_sample(function: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """Apply a function that keeps shapes.

    Example:
        >>> batch = torch.nested.nested_tensor([torch.ones(2, 1), torch.ones(3, 1)], layout=torch.jagged)
        >>> each_sample(lambda sample: 2 * sample, batch).values().flatten()
        tensor([2., 2., 2., 2., 2.])
    """
    changed = [function(sample) for sample in samples(tensor)]
    if not tensor.is_nested:
        return changed[0]
    if tensor.layout == torch.jagged:
        # the same offsets, because torch adds only tensors that share them
        offsets: Tensor = tensor.offsets()  # type: ignore[attr-defined]
        return torch.nested.nested_tensor_from_jagged(changed[0], offsets)
    return torch.nested.as_nested_tensor(changed)
