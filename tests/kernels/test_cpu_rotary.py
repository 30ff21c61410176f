"""Rotary embedding on the CPU equals the reference to the bit: products and sums are the same."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ince.ops import reference
from ince.ops.cpu import rotary
from ince.ops.cpu.rotary import rope, rope_, rope_input_grad

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

cases = {
    "batch": st.integers(0, 3),
    "tokens": st.integers(0, 9),
    "heads": st.tuples(st.integers(0, 4), st.integers(0, 3)),
    "half": st.integers(0, 40),
    "rest": st.integers(0, 5),
    "dtype": st.sampled_from(DTYPES),
    "table_dtype": st.sampled_from(DTYPES),
    "is_shared": st.booleans(),
    "seed": st.integers(0, 100),
}


def drawn(batch, tokens, heads, half, rest, dtype, table_dtype, is_shared, seed):
    generator = torch.Generator().manual_seed(seed)
    size = 2 * half + rest
    q, k = (torch.randn(batch, tokens, n, size, generator=generator).to(dtype) for n in heads)
    tables = torch.randn(2, 1 if is_shared else batch, tokens, 2 * half, generator=generator)
    return q, k, *tables.to(table_dtype)


@given(**cases)
@settings(max_examples=60)
def test_all_three_equal_the_reference(in_each_set, **case):
    q, k, cos, sin = drawn(**case)
    if q.shape[-1] == 0:
        return
    found = in_each_set(lambda: rope(q, k, cos, sin))
    expected = reference.rope(q, k, cos, sin)
    assert all(map(torch.equal, found, expected))
    back = in_each_set(lambda: rope_input_grad(*found, cos, sin))
    expected_back = reference.rope_input_grad(*found, cos, sin)
    assert all(map(torch.equal, back, expected_back))
    assert all(each.is_contiguous() for each in (*found, *back))
    for inverse in (False, True):

        def in_place(inverse=inverse):
            pair = q.clone(), k.clone()
            rope_(*pair, cos, sin, inverse)
            return pair

        expected_pair = q.clone(), k.clone()
        reference.rope_(*expected_pair, cos, sin, inverse)
        assert all(map(torch.equal, in_each_set(in_place), expected_pair))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_slices_of_one_projection_and_other_layouts(dtype, in_each_set):
    generator = torch.Generator().manual_seed(0)
    projected = torch.randn(2, 6, 5 * 16, generator=generator).to(dtype)
    tables = torch.randn(2, 2, 6, 16, generator=generator)
    q = projected[..., : 3 * 16].view(2, 6, 3, 16)
    k = projected[..., 3 * 16 : 4 * 16].view(2, 6, 1, 16)
    expected = reference.rope(q, k, *tables)
    assert all(map(torch.equal, in_each_set(lambda: rope(q, k, *tables)), expected))
    layouts = {
        "heads first": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        "gaps": lambda x: torch.stack((x, x), dim=-1).flatten(-2)[..., ::2],
        "shared": lambda x: x[:, :, :1].expand_as(x),
    }
    for name, layout in layouts.items():
        other_q, other_k = layout(q), layout(k)
        expected = reference.rope(other_q, other_k, *tables)
        assert all(map(torch.equal, rope(other_q, other_k, *tables), expected))
        if name == "shared":
            continue
        rope_(other_q, other_k, *tables, False)
        assert torch.equal(other_q.transpose(1, 2), expected[0])
        assert torch.equal(other_k.transpose(1, 2), expected[1])
    strided = torch.randn(2, 6, 32, generator=generator)[..., ::2]
    expected = reference.rope(q, k, strided, strided)
    assert all(map(torch.equal, rope(q, k, strided, strided), expected))
    # In place within the one buffer.
    before = projected.clone()
    rope_(q, k, *tables, False)
    expected = reference.rope(
        before[..., : 3 * 16].view(2, 6, 3, 16), before[..., 48:64].view(2, 6, 1, 16), *tables
    )
    assert torch.equal(q.transpose(1, 2), expected[0])
    assert torch.equal(k.transpose(1, 2), expected[1])
    assert torch.equal(projected[..., 64:], before[..., 64:])


def test_heads_that_are_too_wide_are_left_to_the_reference(monkeypatch):
    monkeypatch.setattr(rotary, "_MAX_ROTATED", 4)
    q, k = torch.randn(2, 1, 3, 2, 8)
    tables = torch.randn(2, 1, 3, 8)
    expected = reference.rope(q, k, *tables)
    assert all(map(torch.equal, rope(q, k, *tables), expected))
    assert all(map(torch.equal, rope_input_grad(*expected, *tables),
                   reference.rope_input_grad(*expected, *tables)))  # fmt: skip
    rope_(q, k, *tables, False)
    assert torch.equal(q.transpose(1, 2), expected[0])
    wide = torch.randn(1, 2, 1, 2000), torch.randn(1, 2, 1, 2000)
    tables = torch.randn(2, 1, 2, 2000)
    monkeypatch.undo()
    assert all(map(torch.equal, rope(*wide, *tables), reference.rope(*wide, *tables)))
