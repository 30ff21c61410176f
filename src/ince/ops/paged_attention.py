"""Attention of many sequences over keys and values in blocks: the declaration of an operator.

A server's step has queries of sequences of unequal length: one each where an answer goes on,
hundreds where a prompt is read. Their keys lie in a pool of blocks that no sequence owns a
contiguous part of, so that memory is handed out block by block and a common beginning is kept
once. Nothing is padded or gathered. Causal only, and without gradients: it is for answering.

Shapes: N queries of S sequences, H query heads, K key heads (H a multiple of K), D width of a head,
B blocks of P places, M blocks at most in a sequence. Query head h sees key head h // (H / K).

Source: vLLM's PagedAttention, arXiv:2309.06180; FlashAttention-2, arXiv:2307.08691.
"""

import torch
from torch import Tensor

from ince.errors import InputError
from ince.ops.checks import check_float_rows, check_same_device, check_shape
from ince.ops.operator import Operator

__all__ = ["PAGED_ATTENTION", "check_pools", "check_tables", "paged_attention"]


def paged_attention(
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    block_table: Tensor,
    query_starts: Tensor,
    context_lengths: Tensor,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> Tensor:
    """``softmax(q kᵀ · scale) v`` of each sequence, its keys and values read from the pools.

    Sequence s owns the queries ``query_starts[s]:query_starts[s + 1]``, of which the last is at
    position ``context_lengths[s] - 1``. A query at position p sees the keys of positions 0 … p;
    these must have been written (`write_kv_`), its own among them. Position p of a sequence lies in
    block ``block_table[s, p // P]`` at place ``p % P``.

    Args:
        q: (N, H, D) float32, bfloat16 or float16.
        k_pool, v_pool: (B, P, K, D) in the type of `q`.
        block_table: (S, M) int32. Entries beyond a sequence's length are not read.
        query_starts: (S + 1,) int32, from 0 to N, never falling. A sequence may have none.
        context_lengths: (S,) int32.
        scale: of the scores.
        window: a query sees the last `window` keys alone, its own among them; 0 is all.
        softcap: scores become ``softcap · tanh(score / softcap)``; 0 leaves them.

    Returns:
        (N, H, D) in the type of `q`, without gaps.

    Raises:
        InputError: types, shapes or devices do not fit; or a table points outside of the pools,
            which on a GPU is not looked at, as the host would have to wait.

    Scores, exponentials and sums are float32.
    """
    out: Tensor = torch.ops.ince.paged_attention.default(
        q, k_pool, v_pool, block_table, query_starts, context_lengths, scale, window, softcap
    )
    return out


def check_pools(k_pool: Tensor, v_pool: Tensor, like: Tensor, name: str) -> None:
    """Raise `InputError` unless the pools hold keys and values of such heads.

    Args:
        k_pool, v_pool: of the operator.
        like: whose type and width (its last axis) they must have.
        name: of `like`.
    """
    if k_pool.ndim != 4 or 0 in k_pool.shape[1:]:
        raise InputError(
            "not a pool of blocks of keys",
            where="k_pool",
            got=f"shape {tuple(k_pool.shape)}",
            expected="(blocks, places, key heads, width)",
        )
    check_shape("v_pool", v_pool, tuple(k_pool.shape), "as keys")
    for pool_name, pool in (("k_pool", k_pool), ("v_pool", v_pool)):
        if pool.dtype != like.dtype or pool.shape[-1] != like.shape[-1]:
            raise InputError(
                f"{pool_name} does not fit {name}",
                where=pool_name,
                got=f"{pool.dtype}, width {pool.shape[-1]}",
                expected=f"{like.dtype}, width {like.shape[-1]}",
            )


def _check(
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    block_table: Tensor,
    query_starts: Tensor,
    context_lengths: Tensor,
    scale: float,  # noqa: ARG001  the operator's signature
    window: int,
    softcap: float,
) -> None:
    check_float_rows("q", q)
    if q.ndim != 3 or 0 in q.shape[1:]:
        raise InputError(
            "queries that attention cannot take",
            where="q",
            got=f"shape {tuple(q.shape)}",
            expected="(queries, heads, width)",
        )
    check_pools(k_pool, v_pool, q, "q")
    if q.shape[1] % k_pool.shape[2]:
        raise InputError(
            "keys that these queries cannot see",
            where="k_pool",
            got=f"{k_pool.shape[2]} heads",
            expected=f"a divisor of {q.shape[1]} query heads",
        )
    tables = (("block_table", block_table, 2), ("context_lengths", context_lengths, 1))
    for name, table, axes in (*tables, ("query_starts", query_starts, 1)):
        if table.dtype != torch.int32 or table.ndim != axes:
            raise InputError(
                "not a table of sequences",
                where=name,
                got=f"{table.dtype}, shape {tuple(table.shape)}",
                expected="int32, " + ("(sequences, blocks)" if axes == 2 else "one axis"),
            )
    num_sequences = context_lengths.shape[0]
    check_shape("query_starts", query_starts, (num_sequences + 1,), "a sequence more")
    check_shape("block_table", block_table, (num_sequences, block_table.shape[1]), "a row each")
    if window < 0 or not softcap >= 0:
        raise InputError(
            "neither a window nor a softcap can be negative",
            where="window, softcap",
            got=f"{window}, {softcap}",
            expected="at least 0, which is none",
        )
    check_same_device(
        q=q,
        k_pool=k_pool,
        v_pool=v_pool,
        block_table=block_table,
        query_starts=query_starts,
        context_lengths=context_lengths,
    )


def check_tables(
    block_table: Tensor,
    query_starts: Tensor,
    context_lengths: Tensor,
    *,
    num_queries: int,
    num_blocks: int,
    block_size: int,
) -> None:
    """Raise `InputError` unless the tables of sequences point into the pools and at all queries."""
    starts, lengths = query_starts.tolist(), context_lengths.tolist()
    if starts[0] != 0 or starts[-1] != num_queries:
        raise InputError(
            "sequences do not own all queries",
            where="query_starts",
            got=f"from {starts[0]} to {starts[-1]}",
            expected=f"from 0 to {num_queries}",
        )
    for sequence, length in enumerate(lengths):
        count = starts[sequence + 1] - starts[sequence]
        most = block_table.shape[1] * block_size
        if count < 0 or not count <= length <= most:
            raise InputError(
                "a sequence has more queries than places, or more places than its row has blocks",
                where=f"sequence {sequence}",
                got=f"{count} queries, length {length}",
                expected=f"0 <= queries <= length <= {most}",
            )
        used = block_table[sequence, : -(-length // block_size)]
        if count and not bool(((used >= 0) & (used < num_blocks)).all()):
            raise InputError(
                "a sequence has a block that the pools do not have",
                where=f"block_table[{sequence}]",
                got=f"{int(used.min())} to {int(used.max())}",
                expected=f"0 to {num_blocks - 1}",
            )


PAGED_ATTENTION = Operator(
    "paged_attention",
    "(Tensor q, Tensor k_pool, Tensor v_pool, Tensor block_table, Tensor query_starts,"
    " Tensor context_lengths, float scale, int window, float softcap) -> Tensor",
    _check,
)


@PAGED_ATTENTION.fake
def _shape(
    q: Tensor,
    k_pool: Tensor,  # noqa: ARG001  the operator's signature
    v_pool: Tensor,  # noqa: ARG001
    block_table: Tensor,  # noqa: ARG001
    query_starts: Tensor,  # noqa: ARG001
    context_lengths: Tensor,  # noqa: ARG001
    scale: float,  # noqa: ARG001
    window: int,  # noqa: ARG001
    softcap: float,  # noqa: ARG001
) -> Tensor:
    return q.new_empty(q.shape)
