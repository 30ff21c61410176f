"""Attention where a mask allows it in plain PyTorch: all scores, in float32.

It takes memory and time for the whole mask, and is the definition.
"""

from math import inf

import torch
from torch import Tensor
from torch.nn import functional as F

from ince.ops.attention import (
    ATTENTION_TILES,
    FULL,
    PACKED_ATTENTION,
    PACKED_ATTENTION_BACKWARD,
    PARTIAL,
    TILE,
    empty_places_first,
)

__all__ = ["attention_tiles", "packed_attention", "packed_attention_backward"]


@ATTENTION_TILES.backend("default")
def attention_tiles(mask: Tensor) -> Tensor:
    """See `ince.ops.attention_tiles`."""
    rows, _, num_queries, num_keys = mask.shape
    # Places that are not there forbid nothing as queries, and everything as keys.
    missing_queries, missing_keys = -num_queries % TILE, -num_keys % TILE
    allowed = F.pad(mask[:, 0].to(torch.uint8), (0, missing_keys))
    shape = (rows, -1, TILE, allowed.shape[-1] // TILE, TILE)
    if 0 in allowed.shape:
        tiles = [-(-size // TILE) for size in (num_queries, num_keys)]
        return allowed.new_zeros((rows, *tiles))
    any_allowed = F.pad(allowed, (0, 0, 0, missing_queries)).view(shape).amax((2, 4))
    all_allowed = F.pad(allowed, (0, 0, 0, missing_queries), value=1).view(shape).amin((2, 4))
    return torch.where(all_allowed == 1, FULL, any_allowed * PARTIAL).to(torch.uint8)


@PACKED_ATTENTION.backend("default")
def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    tiles: Tensor,  # noqa: ARG001  the operator's signature
    scale: float,
) -> tuple[Tensor, Tensor]:
    """See `ince.ops.packed_attention`."""
    key_heads = k.shape[1]
    scores = _grouped(q, key_heads) @ _grouped(k, key_heads).mT * scale
    lse = scores.masked_fill(~mask[:, :, None], -inf).logsumexp(-1)
    probabilities = _probabilities(scores, lse, mask)
    out = empty_places_first(q)
    out.copy_((probabilities @ _grouped(v, key_heads)).flatten(1, 2))
    return out, lse.flatten(1, 2)


@PACKED_ATTENTION_BACKWARD.backend("default")
def packed_attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    mask: Tensor,
    tiles: Tensor,  # noqa: ARG001  the operator's signature
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `ince.ops.packed_attention_backward`."""
    key_heads = k.shape[1]
    grad, queries, keys, values, result = (
        _grouped(each, key_heads) for each in (grad_out, q, k, v, out)
    )
    scores = queries @ keys.mT * scale
    probabilities = _probabilities(scores, lse.unflatten(1, (key_heads, -1)), mask)
    mean = (grad * result).sum(-1, keepdim=True)
    grad_scores = probabilities * (grad @ values.mT - mean) * scale
    grad_q, grad_k, grad_v = (empty_places_first(each) for each in (q, k, v))
    grad_q.copy_((grad_scores @ keys).flatten(1, 2))
    grad_k.copy_((grad_scores.mT @ queries).sum(2))
    grad_v.copy_((probabilities.mT @ grad).sum(2))
    return grad_q, grad_k, grad_v


def _grouped(heads: Tensor, key_heads: int) -> Tensor:
    """(B, H, L, D) → (B, K, H / K, L, D) in float32."""
    return heads.float().unflatten(1, (key_heads, -1))


def _probabilities(scores: Tensor, lse: Tensor, mask: Tensor) -> Tensor:
    # A query that sees nothing has lse -inf, and exp(inf) where the mask is False.
    return (scores - lse[..., None]).exp().masked_fill(~mask[:, :, None], 0.0)
