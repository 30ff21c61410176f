"""A parameter and its gradient as flat vectors of which stretches can be changed in place.

Optimizers that page see a parameter as its elements in the order of memory. Transposed and
channels-last weights have one; a weight that has gaps is worked on as a copy, which is put back.
"""

import torch
from torch import Tensor

__all__ = ["Stretches", "in_order", "like"]


def _is_dense(tensor: Tensor) -> bool:
    """Each element once and without gaps, in some order of the dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _elements(tensor: Tensor) -> Tensor:
    """(numel,), in the order of memory: a view, or a copy where there are gaps."""
    if tensor.is_contiguous():
        return tensor.view(-1)
    if _is_dense(tensor):
        return tensor.as_strided((tensor.numel(),), (1,))
    return tensor.reshape(-1)


def like(parameter: Tensor, flat: Tensor) -> Tensor:
    """What is in a parameter's order, (numel,), with its shape and strides."""
    if parameter.is_contiguous() or not _is_dense(parameter):
        return flat.view(parameter.shape)
    return flat.as_strided(parameter.shape, parameter.stride())


def in_order(parameter: Tensor, value: Tensor) -> Tensor:
    """A tensor of the parameter's shape as (numel,), in the parameter's order."""
    if parameter.is_contiguous() or not _is_dense(parameter):
        return value.reshape(-1)
    if value.stride() != parameter.stride():
        strides = parameter.stride()
        value = torch.empty_strided(
            parameter.shape, strides, dtype=value.dtype, device=value.device
        ).copy_(value)
    return _elements(value)


class Stretches:
    """A parameter and its gradient for the time of a step, both (numel,)."""

    def __init__(self, parameter: Tensor, gradient: Tensor) -> None:
        self._parameter = parameter.detach()
        self._is_copy = not self._parameter.is_contiguous() and not _is_dense(self._parameter)
        self.values = _elements(self._parameter)
        """Of the parameter; changing them changes it, at the latest with `put_back`."""
        self.gradient = in_order(self._parameter, gradient.detach())

    def put_back(self) -> None:
        """Give a parameter with gaps the values of its copy."""
        if self._is_copy:
            self._parameter.copy_(self.values.view(self._parameter.shape))
