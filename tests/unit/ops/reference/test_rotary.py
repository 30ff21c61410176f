"""The reference is transformers' rotary embedding, computed in float32 and rounded once."""

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from ince.ops import reference


def drawn(num_tables):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 7, 3, 16, generator=generator)
    k = torch.randn(2, 7, 1, 16, generator=generator)
    angles = torch.randn(num_tables, 7, 8, generator=generator).repeat(1, 1, 2)
    return q, k, angles.cos(), angles.sin()


@pytest.mark.parametrize("num_tables", [1, 2])
def test_float32_is_that_of_transformers_to_the_bit(num_tables):
    q, k, cos, sin = drawn(num_tables)
    expected = apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), cos, sin)
    found = reference.rope(q, k, cos, sin)
    assert all(map(torch.equal, found, expected))
    assert all(each.is_contiguous() for each in found)
    reference.rope_(q, k, cos, sin, False)
    assert torch.equal(q.transpose(1, 2), expected[0])
    assert torch.equal(k.transpose(1, 2), expected[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_are_rounded_once(dtype):
    q, k, cos, sin = (each.to(dtype) for each in drawn(1))
    wide = [each.float() for each in (q, k, cos, sin)]
    expected = reference.rope(*wide)
    found = reference.rope(q, k, cos, sin)
    assert all(torch.equal(a, b.to(dtype)) for a, b in zip(found, expected, strict=True))


def test_the_gradient_is_that_of_autograd():
    q, k, cos, sin = (each.double() for each in drawn(2))
    # Angles that differ between the halves, as no model has them, show the transposed matrix.
    cos = cos + torch.linspace(0, 1, 16)
    leaves = [each.requires_grad_() for each in (q, k)]
    turned = apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), cos, sin)
    grads = [torch.randn_like(each) for each in turned]
    expected = torch.autograd.grad(turned, leaves, grads)
    found = reference.rope_input_grad(*(g.float() for g in grads), cos.float(), sin.float())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other.float())
        assert one.is_contiguous()


def test_what_lies_beyond_the_angles_is_left():
    q, k, cos, sin = drawn(1)
    cos, sin = cos[..., :6], sin[..., :6]
    found = reference.rope(q, k, cos, sin)
    part = reference.rope(q[..., :6], k[..., :6], cos, sin)
    for whole, turned, x in zip(found, part, (q, k), strict=True):
        assert torch.equal(whole[..., :6], turned)
        assert torch.equal(whole[..., 6:], x.transpose(1, 2)[..., 6:])
