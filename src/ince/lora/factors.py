"""`Factors`: what one adapter adds to one layer, as matrices.

Every variant of LoRA and every kind of layer comes down to this one form, so that there is one
product, one merge and one mixed batch for all of them. It is a view of parameters, made anew
for each use; it owns nothing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Factors"]


@dataclass(frozen=True, slots=True)
class Factors:
    """``ΔW = s · B A`` over a weight W that is read as a matrix (O, D).

    O are the layer's outputs (an embedding's width), D its fan-in (an embedding's rows, a
    convolution's in · kernel).

    Attributes:
        a_RD: A, (r, D). b_OR: B, (O, r). Any float dtype.
        s: scale of the update.
        bias: (O,) of B, enters as s · bias; or None.
        magnitude: (O,) factor c on the whole output without the layer's own bias; or None.
            DoRA's c = m / ‖W + s·BA‖, arXiv:2402.09353, eq. 5.
    """

    a_RD: Tensor
    b_OR: Tensor
    s: float
    bias: Tensor | None = None
    magnitude: Tensor | None = None

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing but s · B A."""
        return self.bias is None and self.magnitude is None

    def delta(self) -> Tensor:
        """s · B A, (O, D) float32, without magnitude and bias."""
        return (self.b_OR.detach().float() * self.s) @ self.a_RD.detach().float()

    def fold_into(self, weight_OD: Tensor) -> Tensor:
        """c · (W + s · B A), in place in the float32 matrix `weight_OD`, which is returned."""
        with torch.no_grad():
            weight_OD.addmm_(self.b_OR.float(), self.a_RD.float(), alpha=self.s)
            if self.magnitude is not None:
                weight_OD.mul_(self.magnitude.detach().float().unsqueeze(1))
        return weight_OD
