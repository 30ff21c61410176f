"""Putting a step's keys and values into the pools of `paged_attention`: the declaration of an
operator.

Shapes: N tokens, K key heads of D numbers, pools of B blocks of P places.
"""

import torch
from torch import Tensor

from ince.errors import InputError
from ince.ops.checks import check_float_rows, check_same_device, check_shape
from ince.ops.operator import Operator
from ince.ops.paged_attention import check_pools

__all__ = ["WRITE_KV_", "check_slots", "write_kv_"]


def write_kv_(k_pool: Tensor, v_pool: Tensor, k: Tensor, v: Tensor, slots: Tensor) -> None:
    """Write each token's keys and values to its slot: ``block * P + place``.

    Args:
        k_pool, v_pool: (B, P, K, D) float32, bfloat16 or float16, written into.
        k, v: (N, K, D) in the type of the pools, of any strides.
        slots: (N,) int64, no two alike.

    Raises:
        InputError: types, shapes or devices do not fit; or a slot lies outside of the pools,
            which on a GPU is not looked at, as the host would have to wait.
    """
    torch.ops.ince.write_kv_.default(k_pool, v_pool, k, v, slots)


def _check(k_pool: Tensor, v_pool: Tensor, k: Tensor, v: Tensor, slots: Tensor) -> None:
    check_float_rows("k", k)
    check_pools(k_pool, v_pool, k, "k")
    expected = (slots.shape[0] if slots.ndim else 0, *k_pool.shape[2:])
    check_shape("k", k, expected, "a token for each slot, in heads as the pools have them")
    check_shape("v", v, expected, "as keys")
    if v.dtype != k.dtype or slots.dtype != torch.int64 or slots.ndim != 1:
        raise InputError(
            "values are of the type of keys, and slots are int64 in one axis",
            where="v, slots",
            got=f"{v.dtype}; {slots.dtype}, shape {tuple(slots.shape)}",
            expected=f"{k.dtype}; int64, shape ({k.shape[0]},)",
        )
    check_same_device(k_pool=k_pool, v_pool=v_pool, k=k, v=v, slots=slots)


def check_slots(slots: Tensor, num_slots: int) -> None:
    """Raise `InputError` unless all slots are in the pools."""
    if slots.numel() and not bool(((slots >= 0) & (slots < num_slots)).all()):
        raise InputError(
            "a slot that the pools do not have",
            where="slots",
            got=f"{int(slots.min())} to {int(slots.max())}",
            expected=f"0 to {num_slots - 1}",
        )


WRITE_KV_ = Operator(
    "write_kv_",
    "(Tensor(a!) k_pool, Tensor(b!) v_pool, Tensor k, Tensor v, Tensor slots) -> ()",
    _check,
)
