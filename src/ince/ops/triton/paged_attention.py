"""Attention over blocks on a GPU: a program has some queries of a sequence, with all query heads
that see one key head, so that keys are read once for them.

Which sequence a program is of it finds by itself: the host does not wait for the tables, and reads
none of them. Importing this needs Triton.
"""

# Triton's language is typed by what it compiles to, not by annotations.
# pyright: reportUnknownParameterType=false, reportUnknownVariableType=false
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from ince.ops.triton.start import start

__all__ = ["paged_attention", "write_kv_"]

# Rows of a product, at least: what tensor cores take.
_LEAST = 16


@triton.jit
def paged_attention_kernel(
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    out_ptr: tl.tensor,
    table_ptr: tl.tensor,
    starts_ptr: tl.tensor,
    lengths_ptr: tl.tensor,
    num_sequences: tl.tensor,
    max_blocks: tl.tensor,
    block_size: tl.tensor,
    key_heads: tl.tensor,
    width: tl.tensor,
    q_token: tl.tensor,
    q_head: tl.tensor,
    window: tl.tensor,
    scale: tl.tensor,
    softcap: tl.tensor,
    CAPPED: tl.constexpr,
    GROUP: tl.constexpr,
    QUERIES: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
    SEQUENCES: tl.constexpr,
) -> None:
    """QUERIES of a sequence and GROUP heads of each in ROWS, KEYS at a time."""
    program, key_head = tl.program_id(0), tl.program_id(1)
    each = tl.arange(0, SEQUENCES)
    is_there = each < num_sequences
    begins = tl.load(starts_ptr + each, mask=is_there, other=0)
    counts = tl.load(starts_ptr + each + 1, mask=is_there, other=0) - begins
    tiles = (counts + QUERIES - 1) // QUERIES
    ends = tl.cumsum(tiles, 0)
    sequence = tl.sum(((ends <= program) & is_there).to(tl.int32), 0)
    if sequence >= num_sequences:
        return
    tile = program - tl.sum(tl.where(each < sequence, tiles, 0), 0)
    first_token = tl.load(starts_ptr + sequence)
    count = tl.load(starts_ptr + sequence + 1) - first_token
    length = tl.load(lengths_ptr + sequence)
    row = tl.arange(0, ROWS)
    query = tile * QUERIES + row // GROUP
    head = key_head * GROUP + row % GROUP
    has_query = (row < QUERIES * GROUP) & (query < count)
    position = length - count + query
    d = tl.arange(0, WIDTH)
    is_inside = has_query[:, None] & (d[None, :] < width)
    token = (first_token + query).to(tl.int64)
    at = token[:, None] * q_token + head[:, None] * q_head + d[None, :]
    q = tl.load(q_ptr + at, mask=is_inside, other=0.0)
    largest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    sums = tl.zeros((ROWS, WIDTH), tl.float32)
    first_position = length - count + tile * QUERIES
    last_key = tl.minimum(first_position + QUERIES, length)
    first_key = tl.where(window > 0, tl.maximum(first_position - window + 1, 0), 0)
    for start_key in range(first_key // KEYS * KEYS, last_key, KEYS):
        key = start_key + tl.arange(0, KEYS)
        has_key = key < length
        block = tl.load(
            table_ptr + sequence * max_blocks + key // block_size, mask=has_key, other=0
        ).to(tl.int64)
        place = (block * block_size + key % block_size) * key_heads + key_head
        key_at = place[:, None] * width + d[None, :]
        mask = has_key[:, None] & (d[None, :] < width)
        k = tl.load(k_ptr + key_at, mask=mask, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if CAPPED:
            scores = softcap * (1.0 - 2.0 / (1.0 + tl.exp(2.0 * (scores / softcap))))
        sees = has_query[:, None] & (key[None, :] <= position[:, None])
        sees = sees & ((window == 0) | (key[None, :] > position[:, None] - window))
        scores = tl.where(sees, scores, float("-inf"))
        now = tl.maximum(largest, tl.max(scores, 1))
        # A row that has seen nothing yet has no maximum to subtract.
        base = tl.where(now == float("-inf"), 0.0, now)
        weights = tl.exp(scores - base[:, None])
        shrink = tl.exp(largest - base)
        total = total * shrink + tl.sum(weights, 1)
        v = tl.load(v_ptr + key_at, mask=mask, other=0.0)
        added = tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        sums = sums * shrink[:, None] + added
        largest = now
    out_at = (token[:, None] * (key_heads * GROUP) + head[:, None]) * width + d[None, :]
    result = sums / total[:, None]
    tl.store(out_ptr + out_at, result.to(out_ptr.dtype.element_ty), mask=is_inside)


@triton.jit
def write_kv_kernel(
    k_pool_ptr: tl.tensor,
    v_pool_ptr: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    slot_ptr: tl.tensor,
    width: tl.tensor,
    size: tl.tensor,
    k_token: tl.tensor,
    k_head: tl.tensor,
    k_number: tl.tensor,
    v_token: tl.tensor,
    v_head: tl.tensor,
    v_number: tl.tensor,
    SIZE: tl.constexpr,
) -> None:
    """One token: `size` numbers of its heads, each of `width`."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_ptr + token)
    i = tl.arange(0, SIZE)
    mask, head, number = i < size, i // width, i % width
    k = tl.load(k_ptr + token * k_token + head * k_head + number * k_number, mask=mask)
    tl.store(k_pool_ptr + slot * size + i, k, mask=mask)
    v = tl.load(v_ptr + token * v_token + head * v_head + number * v_number, mask=mask)
    tl.store(v_pool_ptr + slot * size + i, v, mask=mask)


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
    num_queries, num_heads, width = q.shape
    _, block_size, key_heads, _ = k_pool.shape
    num_sequences = context_lengths.shape[0]
    out = q.new_empty(q.shape)
    if not num_queries:
        return out
    queries = q if q.stride(-1) == 1 else q.contiguous()
    group = num_heads // key_heads
    # A tile of one query where all sequences go on by one token.
    wanted = 1 if num_queries <= num_sequences else max(1, 64 // group)
    with torch.cuda.device_of(q):
        start(
            paged_attention_kernel,
            (num_queries // wanted + num_sequences, key_heads),
            queries,
            k_pool.contiguous(),
            v_pool.contiguous(),
            out,
            block_table.contiguous(),
            query_starts.contiguous(),
            context_lengths.contiguous(),
            num_sequences,
            block_table.shape[1],
            block_size,
            key_heads,
            width,
            *queries.stride()[:2],
            window,
            scale,
            softcap or 1.0,
            CAPPED=softcap > 0,
            GROUP=group,
            QUERIES=wanted,
            ROWS=max(_LEAST, triton.next_power_of_2(wanted * group)),
            KEYS=32,
            WIDTH=max(_LEAST, triton.next_power_of_2(width)),
            SEQUENCES=triton.next_power_of_2(num_sequences),
            contract=True,
        )
    return out


def write_kv_(k_pool: Tensor, v_pool: Tensor, k: Tensor, v: Tensor, slots: Tensor) -> None:
    """See `ince.ops.write_kv_`."""
    num_tokens, num_heads, width = k.shape
    if not num_tokens:
        return
    pools = [pool.contiguous() for pool in (k_pool, v_pool)]
    size = num_heads * width
    with torch.cuda.device_of(k):
        start(
            write_kv_kernel,
            (num_tokens,),
            *pools,
            k,
            v,
            slots.contiguous(),
            width,
            size,
            *k.stride(),
            *v.stride(),
            SIZE=triton.next_power_of_2(size),
        )
    for pool, whole in zip((k_pool, v_pool), pools, strict=True):
        if whole is not pool:
            pool.copy_(whole)
