"""What a rank of AdaLoRA is worth: how much the loss would change without it.

An entry w of A, E or B is sensitive by I = |w · ∂L/∂w|, a first-order guess that varies from
batch to batch. So I is smoothed, and so is its distance from the smoothed one; their product
is the entry's score. A rank's score is that of its singular value, and the mean of its row of A
and of its column of B.

Source: AdaLoRA, arXiv:2303.10512, eq. 7 to 11.
"""

import torch
from torch import Tensor

__all__ = ["Importance", "rank_scores"]


class Importance:
    """Smoothed sensitivity Ī and uncertainty Ū of one tensor's entries.

    Args:
        like: the tensor.
    """

    def __init__(self, like: Tensor) -> None:
        self._sensitivity = torch.zeros_like(like, requires_grad=False)
        self._uncertainty = torch.zeros_like(like, requires_grad=False)

    @torch.no_grad()
    def update(self, weight: Tensor, grad: Tensor | None, *, beta1: float, beta2: float) -> None:
        """Take a step's weight and gradient in; no gradient counts as zero."""
        now = torch.zeros_like(weight) if grad is None else (weight * grad).abs()
        self._sensitivity.mul_(beta1).add_(now, alpha=1 - beta1)
        distance = (now - self._sensitivity).abs()
        self._uncertainty.mul_(beta2).add_(distance, alpha=1 - beta2)

    def score(self) -> Tensor:
        """Ī · Ū, of the tensor's shape."""
        return self._sensitivity * self._uncertainty


def rank_scores(a: Importance, e: Importance, b: Importance) -> Tensor:
    """The score of each rank of a layer, (r,) on the CPU."""
    score = e.score().flatten() + a.score().mean(dim=1) + b.score().mean(dim=0)
    return score.float().cpu()
