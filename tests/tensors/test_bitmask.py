"""Masked writes by bits against torch's own, and the memory that is used again."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bouton.tensors import scratch as memory
from bouton.tensors.bitmask import clear_where, put_where
from bouton.tensors.scratch import PIECE, passes, row_pieces, scratch

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
ODD = [0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-40, 6e4]


def numbers(shape, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
    odd = torch.tensor(ODD, dtype=torch.float64)[torch.randint(len(ODD), shape, generator=generator)]
    return torch.where(torch.rand(shape, generator=generator) < 0.5, drawn, odd).to(dtype)


def bits(tensor):
    """The tensor's bytes, by which -0 differs from 0 and one NaN from another."""
    return tensor.contiguous().view(torch.uint8)


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3)),
    dtype=st.sampled_from(DTYPES),
    turned=st.booleans(),
    constant=st.booleans(),
    seed=st.integers(0, 99),
)
def test_masked_writes_keep_all_other_bits(shape, dtype, turned, constant, seed):
    out, mask = numbers(shape, dtype, seed), torch.rand(shape) < 0.5
    values = out.new_full((), 0.5).expand(shape) if constant else numbers(shape, dtype, seed + 1)
    if turned:
        out, values, mask = (tensor.transpose(0, 1) for tensor in (out, values, mask))
    expected, cleared = torch.where(mask, values, out), out.masked_fill(mask, 0.0)
    own = out.clone()
    put_where(mask, values, own)
    assert torch.equal(bits(own), bits(expected))
    clear_where(mask, out)
    assert torch.equal(bits(out), bits(cleared))


def test_kept_memory_is_used_again_by_its_name_alone():
    like = torch.empty(3, 4)
    first, other = scratch("test a", like), scratch("test b", like)
    assert scratch("test a", torch.empty(12)).data_ptr() == first.data_ptr() != other.data_ptr()
    assert scratch("test a", like, torch.float64).dtype == torch.float64
    assert scratch("test a", torch.empty(5, 5)).shape == (5, 5)
    grown = scratch("test a", like)
    assert grown.data_ptr() == scratch("test a", torch.empty(25)).data_ptr()


@pytest.mark.parametrize(
    "like", [torch.empty(2, 3).t(), torch.empty(2, 3, device="meta")], ids=["turned", "meta"]
)
def test_other_tensors_get_memory_of_their_own(like):
    made = scratch("test c", like)
    assert made.shape == like.shape and made.device == like.device and made.stride() == like.stride()
    assert made is not scratch("test c", like)


def test_what_is_large_gets_memory_of_its_own():
    large = torch.empty(2 * PIECE + 1)
    assert scratch("test d", large).data_ptr() != scratch("test d", large).data_ptr()
    assert not [key for key in memory._KEPT.views if key[0] == "test d"]


def test_stand_ins_of_torch_func_get_no_kept_memory():
    seen = []
    torch.func.vmap(lambda row: seen.append(passes(row)) or row)(torch.ones(2, 3))
    assert seen == [False] and passes(torch.ones(3))


@given(rows=st.integers(0, 40), columns=st.integers(1, 30))
def test_pieces_are_all_rows_once(rows, columns):
    tensor = torch.empty(rows, columns)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "PIECE", 50)
        slices = list(row_pieces(tensor))
    assert [row for part in slices for row in range(part.start, part.stop)] == list(range(rows))
    assert all((part.stop - part.start) * columns <= max(50, columns) for part in slices)
