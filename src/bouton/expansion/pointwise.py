"""Which operations of a traced forward pass leave the nodes of a layer apart."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

_ACTIVATIONS = """
    CELU ELU GELU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid Mish ReLU ReLU6 SELU
    Sigmoid SiLU Softplus Softshrink Softsign Tanh Tanhshrink Threshold
"""
_DROPOUTS = "Identity Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout"
_POINTWISE = {getattr(nn, name) for name in (_ACTIVATIONS + _DROPOUTS).split()}
_NAMES = """
    relu relu6 leaky_relu elu celu selu gelu silu mish tanh sigmoid hardtanh hardsigmoid hardswish softplus
    softsign tanhshrink hardshrink softshrink logsigmoid threshold abs neg exp expm1 log log1p sqrt rsqrt
    square pow sin cos erf sign clamp add sub mul div truediv iadd isub imul itruediv float half bfloat16
    double to contiguous clone detach
"""
_METHODS = {name + suffix for name in _NAMES.split() for suffix in ("", "_")}
_FUNCTIONS = {
    getattr(space, name) for space in (torch, F, operator) for name in _METHODS if hasattr(space, name)
}
_DROPOUT_FUNCTIONS = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout}
_POOLS = "MaxPool AvgPool AdaptiveAvgPool AdaptiveMaxPool ZeroPad ConstantPad ReflectionPad ReplicationPad"
# what acts on each channel by itself, with the number of axes that it acts along
_CHANNELWISE: dict[object, int] = {
    getattr(nn, f"{kind}{axes}d"): axes for kind in _POOLS.split() for axes in (1, 2, 3)
}
_CHANNELWISE |= {
    getattr(F, f"{kind}_pool{axes}d"): axes
    for kind in ("max", "avg", "adaptive_avg", "adaptive_max")
    for axes in (1, 2, 3)
}


def is_pointwise(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether this maps each entry by itself, and in the same way."""
    if module is not None:
        return type(module) in _POINTWISE
    if node.target in _DROPOUT_FUNCTIONS:
        return node.kwargs.get("training") is False
    return node.target in (_METHODS if node.op == "call_method" else _FUNCTIONS)


def channelwise_axes(node: fx.Node, module: nn.Module | None) -> int | None:
    """Along how many axes this operation acts on each channel by itself, None if it is no such."""
    return _CHANNELWISE.get(node.target if module is None else type(module))


def is_flattening(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether all axes but the first are joined: Flatten(), flatten(x, 1), x.view(x.size(0), -1)."""
    if module is not None:
        return type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1)
    _, *others = node.args or (None,)
    if node.target in ("flatten", torch.flatten):
        sizes = dict(zip(("start_dim", "end_dim"), others, strict=False)) | node.kwargs
        return bool(sizes in ({"start_dim": 1}, {"start_dim": 1, "end_dim": -1}))
    if node.target not in ("view", "reshape", torch.reshape) or len(others) != 2:
        return False
    return isinstance(others[0], fx.Node) and is_batch_size(others[0]) and bool(others[1] == -1)


def is_batch_size(node: fx.Node) -> bool:
    """Whether this is ``x.size(0)`` or ``x.shape[0]``, or ``x.shape`` for nothing else."""
    if node.target == "size":
        return node.args[1:] == (0,)
    if node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and _is_shape(node.args[0]) and node.args[1:] == (0,)
    return _is_shape(node) and all(is_batch_size(user) for user in node.users)


def _is_shape(node: fx.Node) -> bool:
    return node.target is getattr and node.args[1:] == ("shape",)
