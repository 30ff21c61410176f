"""Arithmetic on tensors that tasks left behind: prune, vote about signs, add up.

The same three steps make every combination, once on A and on B, once on the dense update:

1. prune each tensor to a share of its entries, by magnitude, or at random with the rest
   scaled up so that the expectation stays (DARE);
2. with a vote (TIES), keep of each entry the tensors that have the elected sign, and take
   the mean over them; the vote is about the tensors before they are weighted, as in PEFT;
3. without one, add the weighted tensors.

Products are rounded before they are added, as in PEFT: where a singular value is cut off
beside an equal one, the last bit decides which direction stays.

Sources: task arithmetic, arXiv:2212.04089; TIES, arXiv:2306.01708; DARE, arXiv:2311.03099.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Pruning", "mean_of_majority", "prune", "weighted_sum"]

Pruning = Literal["magnitude", "random"]


def prune(
    tensor: Tensor, pruning: Pruning, density: float, generator: torch.Generator | None = None
) -> Tensor:
    """Set all but a share of the entries to zero.

    Args:
        tensor: float32, any shape.
        pruning: "magnitude" keeps the ``int(density · n)`` largest; "random" keeps each entry
            with probability `density` and divides it by that.
        density: in [0, 1] by magnitude, in (0, 1] at random. At 1 the tensor itself comes
            back, and no random number is drawn.
        generator: on the tensor's device; None is torch's global one. One number is drawn
            for each entry, row by row.
    """
    if density >= 1:
        return tensor
    if pruning == "random":
        keep = torch.bernoulli(torch.full_like(tensor, density), generator=generator)
        return tensor * keep / density
    num_kept = int(density * tensor.numel())
    largest = torch.topk(tensor.abs().flatten(), num_kept).indices
    pruned = torch.zeros_like(tensor, memory_format=torch.contiguous_format)
    pruned.view(-1)[largest] = tensor.flatten()[largest]
    return pruned


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """``Σ wᵢ tᵢ``, a new tensor. One is held beside the given ones, not a stack of all."""
    total = tensors[0] * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total += tensor * weight
    return total


def mean_of_majority(tensors: Sequence[Tensor], weights: Sequence[float], method: str) -> Tensor:
    """For each entry the mean of ``wᵢ tᵢ`` over the tensors that have the elected sign.

    Args:
        tensors: of one shape, not weighted yet; zeros have no vote and no share.
        weights: one for each; they do not enter the vote.
        method: "total" elects the sign of the sum, "frequency" the sign of most tensors.
            A draw elects plus.
    """
    vote = torch.zeros_like(tensors[0])
    for tensor in tensors:
        vote.add_(tensor if method == "total" else tensor.sign())
    elected = torch.where(vote >= 0, 1.0, -1.0)
    total, num_kept = torch.zeros_like(vote), torch.zeros_like(vote)
    for tensor, weight in zip(tensors, weights, strict=True):
        keep = tensor.sign() == elected
        total += tensor * weight * keep
        num_kept.add_(keep)
    return total / num_kept.clamp_(min=1)
