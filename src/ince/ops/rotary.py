"""Rotary position embedding (arXiv:2104.09864): the declaration of three operators.

Queries and keys come as projections leave them, a token's heads side by side, and are turned
without being transposed first. Two ways to have them: in new memory, head by head, as attention
reads them; or in place, which moves half as many bytes, where the caller owns them.

Shapes: B sequences of L tokens, H heads of D numbers; the first R <= D of a head are turned.
q (B, L, H, D), k (B, L, Hk, D), cos and sin (B, L, R) or (1, L, R).
"""

from typing import Any

import torch
from torch import Tensor

from ince.errors import InputError
from ince.ops.checks import check_float_rows, check_same_device
from ince.ops.operator import NO_SECOND_GRADIENT, Autograd, Operator

__all__ = ["ROPE", "ROPE_", "ROPE_INPUT_GRAD", "rope", "rope_", "rope_input_grad"]


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """``x * cos + rotate_half(x) * sin`` of queries and keys, in float32 and rounded once.

    Number i of a head and number i + R/2 turn together, as in transformers'
    `apply_rotary_pos_emb`.

    Args:
        q: (B, L, H, D) float32, bfloat16 or float16, of any strides.
        k: (B, L, Hk, D) in the type of `q`.
        cos, sin: (B, L, R) or (1, L, R), R <= D even; in any of the three types.

    Returns:
        (B, H, L, D) and (B, Hk, L, D), each without gaps.

    Raises:
        InputError: shapes, types or devices do not fit.
    """
    turned_q, turned_k = torch.ops.ince.rope.default(q, k, cos, sin)
    return turned_q, turned_k


def rope_(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """`rope` in place.

    Args:
        q, k, cos, sin: as in `rope`; `q` and `k` are written into, and returned.
        inverse: turn the other way, which is how a gradient goes back.

    Raises:
        InputError: shapes, types or devices do not fit; or one of the tensors asks for a
            gradient where gradients are recorded.
    """
    torch.ops.ince.rope_.default(q, k, cos, sin, inverse)
    return q, k


def rope_input_grad(dq: Tensor, dk: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of `rope`: the heads turn the other way, and go back to where they came from.

    Args:
        dq: (B, H, L, D), of any strides.
        dk: (B, Hk, L, D).
        cos, sin: as in the forward.

    Returns:
        (B, L, H, D) and (B, L, Hk, D), each without gaps.
    """
    grad_q, grad_k = torch.ops.ince.rope_input_grad.default(dq, dk, cos, sin)
    return grad_q, grad_k


def _check(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> None:
    for name, tensor, axes in (("q", q, 4), ("k", k, 4), ("cos", cos, 3), ("sin", sin, 3)):
        check_float_rows(name, tensor)
        if tensor.ndim != axes:
            raise InputError(
                f"{name} has the wrong number of axes",
                where=name,
                got=f"shape {tuple(tensor.shape)}",
                expected="(batch, tokens, heads, size)" if axes == 4 else "(batch, tokens, size)",
            )
    num_sequences, num_tokens, _, size = q.shape
    if (k.shape[0], k.shape[1], k.shape[3]) != (num_sequences, num_tokens, size):
        raise InputError(
            "queries and keys differ in more than the number of heads",
            where="k",
            got=f"shape {tuple(k.shape)}, queries {tuple(q.shape)}",
        )
    num_tables, num_positions, num_rotated = cos.shape
    if num_positions != num_tokens or (num_tables != num_sequences and num_tables != 1):
        raise InputError(
            "the angles are of other tokens",
            where="cos",
            got=f"shape {tuple(cos.shape)}",
            expected=f"({num_sequences} or 1, {num_tokens}, …)",
        )
    if num_rotated % 2 or num_rotated > size:
        raise InputError(
            "that many numbers of a head cannot be turned",
            where="cos",
            got=num_rotated,
            expected=f"an even number up to {size}",
        )
    if cos.shape != sin.shape or cos.dtype != sin.dtype or q.dtype != k.dtype:
        raise InputError(
            "cos and sin, and q and k, must be alike",
            got=f"cos {cos.dtype} {tuple(cos.shape)}, sin {sin.dtype} {tuple(sin.shape)},"
            f" q {q.dtype}, k {k.dtype}",
        )
    check_same_device(q=q, k=k, cos=cos, sin=sin)


def _check_in_place(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, inverse: bool) -> None:  # noqa: ARG001
    _check(q, k, cos, sin)


def _check_input_grad(dq: Tensor, dk: Tensor, cos: Tensor, sin: Tensor) -> None:
    q, k = (d.transpose(1, 2) if d.ndim == 4 else d for d in (dq, dk))
    _check(q, k, cos, sin)


def _keep_angles(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001
    _, _, cos, sin = inputs
    ctx.save_for_backward(cos, sin)


def _grad_of_rope(ctx: Any, dq: Tensor, dk: Tensor) -> tuple[Tensor | None, ...]:
    if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
        raise InputError(
            "the angles of rotary embedding have no gradient",
            where="cos, sin",
            do="detach them",
        )
    grads = torch.ops.ince.rope_input_grad.default(dq, dk, *ctx.saved_tensors)
    return *grads, None, None


ROPE = Operator(
    "rope",
    "(Tensor q, Tensor k, Tensor cos, Tensor sin) -> (Tensor, Tensor)",
    _check,
    Autograd(_keep_angles, _grad_of_rope),
)

ROPE_ = Operator(
    "rope_",
    "(Tensor(a!) q, Tensor(b!) k, Tensor cos, Tensor sin, bool inverse) -> ()",
    _check_in_place,
)

ROPE_INPUT_GRAD = Operator(
    "rope_input_grad",
    "(Tensor dq, Tensor dk, Tensor cos, Tensor sin) -> (Tensor, Tensor)",
    _check_input_grad,
    NO_SECOND_GRADIENT,
)


@ROPE.fake
@ROPE_INPUT_GRAD.fake
def _turned_shapes(
    q: Tensor,
    k: Tensor,
    cos: Tensor,  # noqa: ARG001  the operator's signature
    sin: Tensor,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    first, second = (x.new_empty((x.shape[0], x.shape[2], x.shape[1], x.shape[3])) for x in (q, k))
    return first, second
