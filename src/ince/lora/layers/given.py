"""`GivenTensors`: the tensors of an adapter that exists, for the layer that takes them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["GivenTensors"]


@dataclass(frozen=True)
class GivenTensors:
    """What a file or another model has for an adapter."""

    tensors: Mapping[str, Tensor]
    """By name, of the shapes that are wanted."""
    may_keep: bool
    """Whether these very tensors may become the weights, instead of being copied."""
    requires_grad: bool
    """Whether the weights take gradients."""
    stem: str = ""
    """How the names begin of those that are meant."""

    def under(self, stem: str) -> "GivenTensors":
        """Those of one module."""
        return GivenTensors(self.tensors, self.may_keep, self.requires_grad, stem)

    def own(self, suffix: str, device: torch.device) -> Tensor:
        """A tensor that is nobody else's, in float32 on `device`."""
        tensor = self.tensors[self.stem + suffix]
        is_alike = tensor.dtype == torch.float32 and tensor.device == device
        if self.may_keep and is_alike and tensor.is_contiguous():
            return tensor
        empty = torch.empty(tensor.shape, dtype=torch.float32, device=device)
        return empty.copy_(tensor.detach())
