"""The reference is attention by its definition, and counts tiles one by one."""

import pytest
import torch
from torch.nn import functional as F

from ince.ops import reference
from ince.ops.attention import FULL, PARTIAL, SKIPPED, TILE


def drawn(heads, key_heads, num_queries, num_keys):
    torch.manual_seed(0)
    shapes = [(2, heads, num_queries, 8), *[(2, key_heads, num_keys, 8)] * 2]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("heads, key_heads", [(4, 4), (6, 2), (3, 1)])
def test_it_is_the_softmax_of_what_is_allowed(heads, key_heads):
    q, k, v = drawn(heads, key_heads, 13, 21)
    mask = torch.rand(2, 1, 13, 21) < 0.4
    mask[..., 0] = True
    expected = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, scale=0.3, enable_gqa=key_heads < heads
    )
    grad = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(expected, (q, k, v), grad)
    args = [t.detach().float() for t in (q, k, v)]
    tiles = reference.attention_tiles(mask)
    out, lse = reference.packed_attention(*args, mask, tiles, 0.3)
    torch.testing.assert_close(out, expected.float())
    scores = q @ k.repeat_interleave(heads // key_heads, 1).mT * 0.3
    exact = scores.masked_fill(~mask, -torch.inf).logsumexp(-1)
    torch.testing.assert_close(lse, exact.float())
    grads = reference.packed_attention_backward(grad.float(), *args, out, lse, mask, tiles, 0.3)
    for found, wanted in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(found, wanted.float())


def test_a_query_that_sees_nothing_is_zero_and_teaches_nothing():
    q, k, v = (t.detach().float() for t in drawn(2, 1, 5, 7))
    mask = torch.zeros(2, 1, 5, 7, dtype=torch.bool)
    tiles = reference.attention_tiles(mask)
    out, lse = reference.packed_attention(q, k, v, mask, tiles, 1.0)
    assert (out == 0).all()
    assert (lse == -torch.inf).all()
    for grad in reference.packed_attention_backward(q, q, k, v, out, lse, mask, tiles, 1.0):
        assert (grad == 0).all()


def kind_of(part):
    is_whole = part.shape[1] == TILE
    return FULL if is_whole and part.all() else PARTIAL if part.any() else SKIPPED


@pytest.mark.parametrize("shape", [(1, 1), (16, 16), (15, 33), (40, 48), (33, 16)], ids=str)
def test_tiles_say_what_the_mask_says(shape):
    torch.manual_seed(0)
    for share in (0.0, 0.02, 0.98, 1.0):
        mask = torch.rand(2, 1, *shape) < share
        tiles = reference.attention_tiles(mask)
        for row in range(2):
            for i in range(tiles.shape[1]):
                for j in range(tiles.shape[2]):
                    part = mask[row, 0, i * TILE : (i + 1) * TILE, j * TILE : (j + 1) * TILE]
                    assert tiles[row, i, j] == kind_of(part)
