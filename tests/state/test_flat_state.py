"""State dicts as tensors and JSON."""

import collections
import json

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._pytree import tree_map

import bouton

TENSORS = st.sampled_from(
    [
        torch.tensor(0.1),
        torch.arange(6).view(2, 3).t(),
        torch.zeros(0, 2, dtype=torch.bfloat16),
        torch.tensor([True, False]),
        torch.tensor([float("nan"), float("inf"), -0.0], dtype=torch.float64),
        torch.ones(1).expand(3),
    ]
)
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), TENSORS)
KEYS = st.one_of(
    st.integers(-2, 2), st.sampled_from(["a", "a.b", "b", "0", "tensor", "items", "tuple", ""])
)
STATES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.tuples(inner, inner), st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=12,
)


def readable(state):
    """With tensors spelled out by bits, so that states can be compared, NaN included."""
    return repr(tree_map(lambda x: (x.dtype, x.tolist()) if isinstance(x, torch.Tensor) else x, state))


@given(state=STATES)
def test_every_state_comes_back(state):
    tensors, text = bouton.flatten_state(state)
    json.loads(text)
    back = bouton.unflatten_state(safetensors.torch.load(safetensors.torch.save(tensors)), text)
    assert readable(back) == readable(state)


def test_the_tensors_are_copies():
    weight = torch.ones(2)
    tensors, _ = bouton.flatten_state([weight, weight])
    weight.zero_()
    assert [tensor.tolist() for tensor in tensors.values()] == [[1, 1], [1, 1]]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"state\.0\.hook.*function.*take it out"):
        bouton.flatten_state({"state": [{"hook": lambda: None}]})
    with pytest.raises(ValueError, match=r"milestones.*it is a Counter; take it out"):
        bouton.flatten_state({"milestones": collections.Counter([3])})
    with pytest.raises(ValueError, match=r"key \(1, 2\) in groups"):
        bouton.flatten_state({"groups": {(1, 2): 3}})
    tensors, text = bouton.flatten_state(nn.Linear(2, 1).state_dict())
    with pytest.raises(ValueError, match="needs the tensor 'bias'"):
        bouton.unflatten_state({"weight": tensors["weight"]}, text)
    with pytest.raises(ValueError, match=r"not of bouton.flatten_state: it has lr"):
        bouton.unflatten_state({}, '{"lr": 1}')
    with pytest.raises(ValueError, match=r"text is a NoneType; pass the JSON text"):
        bouton.unflatten_state(tensors, None)
