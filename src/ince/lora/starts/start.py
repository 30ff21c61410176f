"""`Start`: the values that an adapter begins with in one layer, and what may be decomposed.

A start never changes the base. Some published ones do (PiSSA, OLoRA, LoRA-GA): they begin with
B A ≠ 0 and take it from W, so that the model still begins as its base. Here W stays, and the
layer takes ``s · B₀A₀`` off for as long as the adapter is on:

    W + s · (B A − B₀ A₀)     which is the published  (W − s · B₀ A₀) + s · B A

Shapes: W (O, D), A (R, D), B (O, R).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ince.errors import AdapterError
from ince.quant import Linear4bit

__all__ = ["Start", "decomposable"]


@dataclass(frozen=True, slots=True)
class Start:
    """Initial values of A and B in one layer, float32.

    Attributes:
        a_RD: A. b_OR: B. As matrices, or in the shapes that were asked for.
        base_change: (A₀, B₀) to be taken off the base while the adapter is on; or None.
        bias_O: (O,) of B's bias, where it is not zero; or None.
        quantized: what takes the base's place: the same weight in 4 bits (LoftQ); or None.
    """

    a_RD: Tensor
    b_OR: Tensor
    base_change: tuple[Tensor, Tensor] | None = None
    bias_O: Tensor | None = None
    quantized: Linear4bit | None = None


def decomposable(weight_OD: Tensor, r: int, *, method: str, name: str = "weight") -> Tensor:
    """`weight_OD` in float32, after a check that it has `r` directions to give.

    Args:
        weight_OD: a matrix of any float dtype; it is not changed.
        r: directions that are asked for.
        method: that asks, for messages.
        name: of the weight, for messages.

    Raises:
        AdapterError: no matrix, an empty one or one that is not finite; or r below 1 or above
            its smaller side.
    """
    if weight_OD.ndim != 2 or weight_OD.numel() == 0 or not weight_OD.is_floating_point():
        raise AdapterError(
            f"{method} decomposes a matrix, which this is not",
            where=name,
            got=f"shape {tuple(weight_OD.shape)}, {weight_OD.dtype}",
            expected="(out, in), at least one of each, in floats",
            do="leave the layer out, or start it with init_lora_weights=True",
        )
    limit = min(weight_OD.shape)
    if not 1 <= r <= limit:
        raise AdapterError(
            f"{method} takes the rank from the matrix, which has fewer directions",
            where=name,
            got=f"{r} directions of a weight {tuple(weight_OD.shape)}",
            expected=f"1 to {limit}",
            do="lower r, or give the layer a lower one in rank_pattern",
        )
    weight = weight_OD.detach().to(torch.float32)
    num_bad = weight.numel() - int(torch.isfinite(weight).sum())
    if num_bad:
        raise AdapterError(
            f"{method} cannot decompose values that are not finite",
            where=name,
            got=f"{num_bad} of {weight.numel()} are NaN or infinite",
            do="the model's files are damaged; get them again",
        )
    return weight
