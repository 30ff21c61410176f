"""Attention where a mask allows it: the declaration of three operators.

For rows that hold several documents most of the mask is False. What it forbids is skipped, in
tiles of `TILE` queries times `TILE` keys; nothing of the size of the mask is kept for the backward
pass, but the logarithm of each query's sum of exponentials.

Shapes: B rows, H query heads, K key heads (H a multiple of K), L queries, S keys, D width of a
head. Query head h sees key head h // (H / K).

Source: FlashAttention-2, arXiv:2307.08691.
"""

from typing import Any

import torch
from torch import Tensor

from ince.errors import InputError
from ince.ops.operator import Autograd, Operator
from ince.ops.packed import FLOAT_DTYPES

__all__ = [
    "ATTENTION_TILES",
    "FULL",
    "PACKED_ATTENTION",
    "PACKED_ATTENTION_BACKWARD",
    "PARTIAL",
    "SKIPPED",
    "TILE",
    "attention_tiles",
    "packed_attention",
    "packed_attention_backward",
]

TILE = 16
"""Queries, and keys, of a tile; that of kernels/attention.h."""

SKIPPED, FULL, PARTIAL = 0, 1, 2
"""What a mask says of a tile: nothing is allowed, everything is, or some."""


def attention_tiles(mask: Tensor) -> Tensor:
    """What the mask says of each tile, for all layers that have this mask.

    Args:
        mask: (B, 1, L, S) bool.

    Returns:
        (B, ceil(L / TILE), ceil(S / TILE)) uint8: `SKIPPED`, `FULL` or `PARTIAL`. A tile that
        ends beyond the last key is never `FULL`.

    Raises:
        InputError: `mask` is of another type or shape.
    """
    tiles: Tensor = torch.ops.ince.attention_tiles.default(mask)
    return tiles


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, *, tiles: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``softmax(q kᵀ · scale) v`` where `mask` is True.

    Args:
        q: (B, H, L, D) float32, bfloat16 or float16. k, v: (B, K, S, D) of the same type. Any
            strides; copied unless the numbers of a place lie side by side.
        mask: (B, 1, L, S) bool, True where the query may see the key.
        scale: of the scores.
        tiles: `attention_tiles` of this very mask; made here when None.

    Returns:
        out: (B, H, L, D) in the type of `q`, in memory (B, L, H, D), so that
            ``out.transpose(1, 2).reshape(B, L, H * D)`` copies nothing. A query that sees nothing
            gets 0.
        lse: (B, H, L) float32, the logarithm of the sum of exponentials of the scores that are
            allowed, -inf where none is. No gradient goes through it.

    Raises:
        InputError: types, shapes or devices do not fit.

    Sums and exponentials are float32; some backends round probabilities to the type of `q` before
    they multiply them with values, as PyTorch's fused attention does.
    """
    if tiles is None:
        tiles = attention_tiles(mask)
    out, lse = torch.ops.ince.packed_attention.default(q, k, v, mask, tiles, scale)
    return out, lse


def packed_attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    mask: Tensor,
    scale: float,
    *,
    tiles: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `packed_attention` by `q`, `k` and `v`, from what it returned.

    Returns:
        In the types and shapes of `q`, `k` and `v`, in memory (B, L, H, D) and (B, S, K, D). 0 for
        queries that see nothing, and for keys that nothing sees.

    Raises:
        InputError: types, shapes or devices do not fit.
    """
    if tiles is None:
        tiles = attention_tiles(mask)
    grads: tuple[Tensor, Tensor, Tensor] = torch.ops.ince.packed_attention_backward.default(
        grad_out, q, k, v, out, lse, mask, tiles, scale
    )
    return grads


def _num_tiles(places: int) -> int:
    return (places + TILE - 1) // TILE


def _check_mask(mask: Tensor) -> None:
    if mask.dtype != torch.bool or mask.ndim != 4 or mask.shape[1] != 1:
        raise InputError(
            "not an attention mask of packed rows",
            where="mask",
            got=f"{mask.dtype}, shape {tuple(mask.shape)}",
            expected="bool, (rows, 1, queries, keys)",
        )


def _check_tensor(
    name: str, tensor: Tensor, like: Tensor, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise InputError(
            f"{name} does not fit the other arguments of attention",
            where=name,
            got=f"{tensor.dtype}, shape {tuple(tensor.shape)}",
            expected=f"{dtype}, shape {shape}",
        )
    if tensor.device != like.device:
        raise InputError(
            "the arguments of attention are on two devices",
            got=f"q on {like.device}, {name} on {tensor.device}",
            do="move all of them to one device",
        )


def _check_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    tiles: Tensor,
    scale: float,  # noqa: ARG001  the operator's signature
) -> None:
    if q.dtype not in FLOAT_DTYPES or q.ndim != 4 or 0 in (q.shape[1], q.shape[3]):
        raise InputError(
            "queries that attention cannot take",
            where="q",
            got=f"{q.dtype}, shape {tuple(q.shape)}",
            expected="float32, bfloat16 or float16, (rows, heads, queries, width)",
        )
    rows, heads, num_queries, width = q.shape
    if k.ndim != 4 or k.shape[1] == 0 or heads % k.shape[1]:
        raise InputError(
            "keys that these queries cannot see",
            where="k",
            got=f"shape {tuple(k.shape)}",
            expected=f"({rows}, key heads, keys, {width}), {heads} a multiple of the key heads",
        )
    key_heads, num_keys = k.shape[1:3]
    _check_tensor("k", k, q, (rows, key_heads, num_keys, width), q.dtype)
    _check_tensor("v", v, q, (rows, key_heads, num_keys, width), q.dtype)
    _check_mask(mask)
    _check_tensor("mask", mask, q, (rows, 1, num_queries, num_keys), torch.bool)
    shape = (rows, _num_tiles(num_queries), _num_tiles(num_keys))
    _check_tensor("tiles", tiles, q, shape, torch.uint8)


def _check_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    mask: Tensor,
    tiles: Tensor,
    scale: float,
) -> None:
    _check_attention(q, k, v, mask, tiles, scale)
    _check_tensor("grad_out", grad_out, q, tuple(q.shape), q.dtype)
    _check_tensor("out", out, q, tuple(q.shape), q.dtype)
    _check_tensor("lse", lse, q, tuple(q.shape[:3]), torch.float32)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, scale = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(*tensors, out, lse)
    ctx.scale = scale


def _gradients(ctx: Any, grad_out: Tensor, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: ARG001
    q, k, v, mask, tiles, out, lse = ctx.saved_tensors
    grads = torch.ops.ince.packed_attention_backward.default(
        grad_out, q, k, v, out, lse, mask, tiles, ctx.scale
    )
    return *grads, None, None, None


def _keep_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    pass


def _refuse(ctx: Any, *grads: Any) -> None:  # noqa: ARG001
    raise InputError(
        "attention over packed rows has no second derivative",
        do="leave create_graph out, or use another attention implementation",
    )


ATTENTION_TILES = Operator("attention_tiles", "(Tensor mask) -> Tensor", _check_mask)

_OPERANDS = "Tensor q, Tensor k, Tensor v"

PACKED_ATTENTION = Operator(
    "packed_attention",
    f"({_OPERANDS}, Tensor mask, Tensor tiles, float scale) -> (Tensor out, Tensor lse)",
    _check_attention,
    Autograd(_keep, _gradients),
)

PACKED_ATTENTION_BACKWARD = Operator(
    "packed_attention_backward",
    f"(Tensor grad_out, {_OPERANDS}, Tensor out, Tensor lse, Tensor mask, Tensor tiles,"
    " float scale) -> (Tensor grad_q, Tensor grad_k, Tensor grad_v)",
    _check_backward,
    Autograd(_keep_nothing, _refuse),
)


def empty_places_first(like: Tensor) -> Tensor:
    """A new tensor of the shape (B, H, L, D) and type of `like`, in memory (B, L, H, D)."""
    rows, heads, places, width = like.shape
    return like.new_empty((rows, places, heads, width)).transpose(1, 2)


@ATTENTION_TILES.fake
def empty_tiles(mask: Tensor) -> Tensor:
    """A new tensor for the tiles of `mask`."""
    rows, _, num_queries, num_keys = mask.shape
    return mask.new_empty((rows, _num_tiles(num_queries), _num_tiles(num_keys)), dtype=torch.uint8)


@PACKED_ATTENTION.fake
def _attention_shapes(
    q: Tensor,
    k: Tensor,  # noqa: ARG001  the operator's signature
    v: Tensor,  # noqa: ARG001
    mask: Tensor,  # noqa: ARG001
    tiles: Tensor,  # noqa: ARG001
    scale: float,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    return empty_places_first(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@PACKED_ATTENTION_BACKWARD.fake
def _backward_shapes(
    grad_out: Tensor,  # noqa: ARG001  the operator's signature
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,  # noqa: ARG001
    lse: Tensor,  # noqa: ARG001
    mask: Tensor,  # noqa: ARG001
    tiles: Tensor,  # noqa: ARG001
    scale: float,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor]:
    return empty_places_first(q), empty_places_first(k), empty_places_first(v)
