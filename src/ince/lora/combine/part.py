"""One adapter's share in one layer, and what must hold of a pair of factors.

Layers and files check shapes against the base model. Here the base is not known: only what
the mathematics needs is checked, so that a NaN or a swapped factor is named where it enters
and not found in the result.

Shapes: R rank, D in, O out. Convolutions and embeddings come as matrices.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ince.errors import AdapterError

__all__ = ["Part", "check_factors", "checked_parts"]


@dataclass(frozen=True, slots=True)
class Part:
    """``weight · s · B A``: what one adapter gives to the combination of a layer."""

    a_RD: Tensor
    b_OR: Tensor
    s: float
    """The adapter's own scale, α/r or α/√r; may be negative."""
    weight: float = 1.0
    """Its weight in the combination; may be negative."""
    name: str = ""
    """The adapter's name, for errors."""

    @property
    def rank(self) -> int:
        """R, the width of the factors."""
        return self.a_RD.shape[0]

    def delta(self) -> Tensor:
        """``s · B A`` (O, D) without the weight, in the factors' dtype."""
        return (self.b_OR @ self.a_RD) * self.s


def check_factors(a_RD: Tensor, b_OR: Tensor, s: float = 1.0, *, where: str | None = None) -> None:
    """Refuse what is not a pair of factors of one matrix.

    Raises:
        AdapterError: not two matrices of floats on one device with a common rank of at least
            1, or a value or the scale is not finite.
    """
    shapes = f"A {tuple(a_RD.shape)}, B {tuple(b_OR.shape)}"
    if a_RD.ndim != 2 or b_OR.ndim != 2:
        raise AdapterError(
            "the factors of an update are not matrices",
            where=where,
            got=shapes,
            expected="A (r, in) and B (out, r)",
            do="flatten the factors of convolutions to matrices",
        )
    if a_RD.shape[0] != b_OR.shape[1]:
        raise AdapterError(
            "the factors of an update disagree about its rank",
            where=where,
            got=shapes,
            expected="A (r, in) and B (out, r)",
        )
    if a_RD.numel() == 0 or b_OR.numel() == 0:
        raise AdapterError(
            "the factors of an update are empty",
            where=where,
            got=shapes,
            expected="a rank, an input and an output of at least 1",
        )
    if a_RD.device != b_OR.device:
        raise AdapterError(
            "the factors of an update lie on two devices",
            where=where,
            got=f"A on {a_RD.device}, B on {b_OR.device}",
            do="move both to one device",
        )
    if not math.isfinite(s):
        raise AdapterError("the scale of an update is not a finite number", where=where, got=s)
    for name, factor in (("A", a_RD), ("B", b_OR)):
        if not factor.is_floating_point():
            raise AdapterError(
                f"factor {name} does not hold floats", where=where, got=str(factor.dtype)
            )
        if not bool(torch.isfinite(factor).all()):
            raise AdapterError(
                f"factor {name} holds NaN or infinity",
                where=where,
                do="the adapter is damaged, or its training diverged: use an earlier checkpoint",
            )


def checked_parts(parts: Sequence[Part]) -> list[Part]:
    """The parts in float32, cut off from autograd, after all checks.

    Raises:
        AdapterError: there are none; one of them is no pair of factors or has a weight that
            is not finite; or they belong to matrices of different shapes or devices.
    """
    if not parts:
        raise AdapterError(
            "there is nothing to combine in this layer",
            expected="at least one adapter with an update here",
        )
    first = parts[0]
    for number, part in enumerate(parts):
        where = part.name or f"part {number}"
        check_factors(part.a_RD, part.b_OR, part.s, where=where)
        if not math.isfinite(part.weight):
            raise AdapterError(
                "the weight of an adapter is not a finite number", where=where, got=part.weight
            )
        shape, wanted = _matrix_shape(part), _matrix_shape(first)
        if shape != wanted:
            raise AdapterError(
                "the adapters belong to matrices of different shapes",
                where=where,
                got=shape,
                expected=wanted,
                do="combine adapters of one base model",
            )
        if part.a_RD.device != first.a_RD.device:
            raise AdapterError(
                "the adapters lie on different devices",
                where=where,
                got=str(part.a_RD.device),
                expected=str(first.a_RD.device),
            )
    return [
        Part(
            part.a_RD.detach().to(torch.float32),
            part.b_OR.detach().to(torch.float32),
            part.s,
            part.weight,
            part.name,
        )
        for part in parts
    ]


def _matrix_shape(part: Part) -> tuple[int, int]:
    return part.b_OR.shape[0], part.a_RD.shape[1]
