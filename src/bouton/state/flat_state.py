"""Any state dict as named tensors and JSON, for formats that need no pickle, such as safetensors."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_TENSOR, _TUPLE, _ITEMS = "tensor", "tuple", "items"  # what JSON lacks: {"tensor": name}, ...


def flatten_state(state: Any) -> tuple[dict[str, Tensor], str]:
    """Split a state dict into its tensors, by name, and a JSON text that holds the rest.

    For an optimizer, whose state dict nests and has integers as keys, so that safetensors alone cannot hold
    it. Every number keeps its bits, and every tensor its type, in contiguous memory of its own.

    Args:
        state: what ``state_dict()`` of an optimizer, a scheduler, a model or a handle returns: tensors,
            numbers, strings, None, and dicts, lists and tuples of these.

    Raises:
        ValueError: the state holds something else.

    Example:
        >>> import bouton, torch
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.AdamW(layer.parameters())
        >>> layer(torch.ones(1, 2)).sum().backward(); optimizer.step()
        >>> tensors, text = bouton.flatten_state(optimizer.state_dict())
        >>> list(tensors)[:3]
        ['state.0.step', 'state.0.exp_avg', 'state.0.exp_avg_sq']
        >>> optimizer.load_state_dict(bouton.unflatten_state(tensors, text))
    """
    tensors: dict[str, Tensor] = {}
    return tensors, json.dumps(_flattened(state, "", tensors))


def unflatten_state(tensors: Mapping[str, Tensor], text: str) -> Any:
    """The state dict that :func:`flatten_state` split.

    Raises:
        ValueError: the text is not of :func:`flatten_state`, or a tensor that it names is not there.
    """
    if not isinstance(text, str):
        raise ValueError(
            f"text is a {type(text).__name__}; pass the JSON text that bouton.flatten_state gave"
        )
    return _unflattened(json.loads(text), tensors)


def _flattened(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = path or "state"
        while name in tensors:  # a key with a dot may look like a path
            name += "'"
        tensors[name] = value.detach().clone(memory_format=torch.contiguous_format)
        return {_TENSOR: name}
    if type(value) in (dict, OrderedDict):  # another kind, such as a Counter, would come back as a dict
        items = [
            [key, _flattened(item, f"{path}.{key}".removeprefix("."), tensors)]
            for key, item in value.items()
        ]
        if odd := [key for key, _ in items if not isinstance(key, str | int)]:
            raise ValueError(
                f"cannot write the key {odd[0]!r} in {path or 'the state'}; use text or whole numbers"
            )
        return {_ITEMS: items}
    if isinstance(value, list | tuple):
        items = [
            _flattened(item, f"{path}.{place}".removeprefix("."), tensors)
            for place, item in enumerate(value)
        ]
        return {_TUPLE: items} if isinstance(value, tuple) else items
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        f"cannot write {path or 'the state'} as tensors and JSON: it is a {type(value).__name__}; take "
        "it out of the state before"
    )


def _unflattened(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unflattened(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1 or not value.keys() <= {_TENSOR, _TUPLE, _ITEMS}:
        raise ValueError(
            f"this text is not of bouton.flatten_state: it has {', '.join(value) or 'an empty dict'}"
        )
    ((kind, held),) = value.items()
    if kind == _TENSOR:
        if held not in tensors:
            raise ValueError(
                f"the state needs the tensor {held!r}, which is not among those given; pass all of them"
            )
        return tensors[held]
    if kind == _TUPLE:
        return tuple(_unflattened(item, tensors) for item in held)
    return {key: _unflattened(item, tensors) for key, item in held}
