"""Paged attention on the CPU, and the writing of keys and values: read and written where they lie.

A sequence with few queries takes the time of reading its keys and values, and long ones are
divided among threads; many queries are multiplied as matrices. Pools with gaps are left to the
reference, as they would have to be copied.
"""

import struct

import torch
from torch import Tensor

import ince.ops.reference as reference
from ince.ops.cpu.library import NO_MEMORY, active
from ince.ops.cpu.tables import DTYPES
from ince.ops.paged_attention import PAGED_ATTENTION
from ince.ops.write_kv import WRITE_KV_

__all__ = ["paged_attention", "write_kv_"]

# `ince::PagedArgs` and `ince::WriteArgs` of kernels/serving.h.
_PAGED_ARGUMENTS = struct.Struct("@3q3q7q6q2d").pack
_WRITE_ARGUMENTS = struct.Struct("@14q").pack


@PAGED_ATTENTION.backend("cpu")
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
    library = active()
    args = (q, k_pool, v_pool, block_table, query_starts, context_lengths, scale, window, softcap)
    if library is None or not (k_pool.is_contiguous() and v_pool.is_contiguous()):
        return reference.paged_attention(*args)
    # Copies live until the call is over.
    queries = q if q.stride(-1) == 1 else q.contiguous()
    tables = [table.contiguous() for table in (block_table, query_starts, context_lengths)]
    num_queries, num_heads, width = q.shape
    num_blocks, block_size, key_heads, _ = k_pool.shape
    out = q.new_empty(q.shape)
    status = library.paged_attention(
        _PAGED_ARGUMENTS(
            queries.data_ptr(),
            *queries.stride()[:2],
            k_pool.data_ptr(),
            v_pool.data_ptr(),
            out.data_ptr(),
            DTYPES[q.dtype],
            num_queries,
            num_heads,
            key_heads,
            width,
            num_blocks,
            block_size,
            tables[0].data_ptr(),
            block_table.shape[1],
            tables[1].data_ptr(),
            tables[2].data_ptr(),
            context_lengths.shape[0],
            window,
            scale,
            softcap,
        ),
        torch.get_num_threads(),
    )
    if status == NO_MEMORY:
        raise MemoryError("there is no memory for the sums of attention")
    # What is wrong with the tables, the reference says.
    return reference.paged_attention(*args) if status else out


@WRITE_KV_.backend("cpu")
def write_kv_(k_pool: Tensor, v_pool: Tensor, k: Tensor, v: Tensor, slots: Tensor) -> None:
    """See `ince.ops.write_kv_`."""
    library = active()
    if library is None or not (k_pool.is_contiguous() and v_pool.is_contiguous()):
        reference.write_kv_(k_pool, v_pool, k, v, slots)
        return
    keys, values = (each if each.stride(-1) == 1 else each.contiguous() for each in (k, v))
    places = slots.contiguous()
    num_tokens, num_heads, width = k.shape
    status = library.write_kv(
        _WRITE_ARGUMENTS(
            k_pool.data_ptr(),
            v_pool.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            *keys.stride()[:2],
            *values.stride()[:2],
            width * k.element_size(),
            k.element_size(),
            num_heads,
            num_tokens,
            places.data_ptr(),
            k_pool.shape[0] * k_pool.shape[1],
        ),
        torch.get_num_threads(),
    )
    if status:
        reference.write_kv_(k_pool, v_pool, k, v, slots)
