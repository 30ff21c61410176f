"""Attention over blocks in plain PyTorch: a sequence at a time, its keys gathered, in float32."""

from math import inf

import torch
from torch import Tensor

from ince.ops.paged_attention import PAGED_ATTENTION, check_tables

__all__ = ["paged_attention"]


@PAGED_ATTENTION.backend("default")
def paged_attention(
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    block_table: Tensor,
    query_starts: Tensor,
    context_lengths: Tensor,
    scale: float,
    window: int,
    softcap: float,
) -> Tensor:
    """See `ince.ops.paged_attention`."""
    num_blocks, block_size, key_heads, _ = k_pool.shape
    check_tables(
        block_table,
        query_starts,
        context_lengths,
        num_queries=q.shape[0],
        num_blocks=num_blocks,
        block_size=block_size,
    )
    out = q.new_empty(q.shape)
    starts, lengths = query_starts.tolist(), context_lengths.tolist()
    for blocks, start, stop, length in zip(block_table, starts, starts[1:], lengths, strict=False):
        if start == stop:
            continue
        used = blocks[: -(-length // block_size)].long()
        # (K, 1, L, D): a head's keys, for all query heads that see it.
        keys, values = (
            pool[used].flatten(0, 1)[:length].float().transpose(0, 1).unsqueeze(1)
            for pool in (k_pool, v_pool)
        )
        queries = q[start:stop].float().transpose(0, 1).unflatten(0, (key_heads, -1))
        scores = queries @ keys.mT * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        position = torch.arange(length - (stop - start), length, device=q.device)[:, None]
        key = torch.arange(length, device=q.device)
        is_hidden = key > position
        if window:
            is_hidden |= key <= position - window
        scores = scores.masked_fill(is_hidden, -inf)
        out[start:stop] = (scores.softmax(-1) @ values).flatten(0, 1).transpose(0, 1).to(q.dtype)
    return out
