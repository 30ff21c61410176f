"""Plain modules out of adapted and quantized ones: their tensors, or copies of them.

What is adapted comes merged, what is packed in 4 bits comes as floats; the rest as it is.
"""

import copy
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from ince.lora.layers.adapted import Adapted, MergedTensor, outer_modules
from ince.quant import Experts4bit, Linear4bit
from ince.quant.experts4bit import take_experts

__all__ = ["plain_copy", "plain_tensor", "plain_tensors"]

_Module = TypeVar("_Module", bound=nn.Module)


def plain_tensors(prefix: str, module: nn.Module, dtype: torch.dtype) -> Iterator[MergedTensor]:
    """The tensors of the plain form of `module`, in its order; nothing is computed yet.

    Parameters that are shared come under each of their names.

    Args:
        prefix: of the names; empty, or with a dot at its end.
        module: adapted, quantized, plain, or holding such.
        dtype: of floating-point parameters. Buffers that are stored keep theirs.
    """
    for name, each in outer_modules(module):
        stem = f"{prefix}{name}." if name else prefix
        if isinstance(each, Adapted):
            yield from each.merged_tensors(stem, dtype)
            continue
        if isinstance(each, Linear4bit):
            yield from _dequantized(stem, each, dtype)
            continue
        if isinstance(each, Experts4bit):
            yield MergedTensor(
                stem.removesuffix("."),
                tuple(each.shape),
                dtype,
                lambda each=each: each.dequantize(dtype),
            )
            continue
        for leaf, parameter in each.named_parameters(recurse=False):
            yield plain_tensor(stem + leaf, parameter, dtype)
        for leaf, buffer in each.named_buffers(recurse=False):
            if leaf not in each._non_persistent_buffers_set:  # pyright: ignore[reportPrivateUsage]
                yield plain_tensor(stem + leaf, buffer, buffer.dtype)


def plain_copy(
    module: _Module,
    dtype: torch.dtype | None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> _Module:
    """A copy without adapted or packed modules, its parameters frozen; nothing is shared.

    Args:
        module: adapted, quantized, plain, or holding such; left as it is.
        dtype: of floating-point parameters. None: float32 for those of 16 bits or less, and
            the others as they are.
        progress: told how many of the adapted and packed modules are done.
    """
    floats = torch.float32 if dtype is None else dtype
    special = [each for _, each in outer_modules(module) if isinstance(each, Adapted | Linear4bit)]
    # What the copy meets at these addresses it takes as copied already.
    memo: dict[int, object] = {}
    for number, each in enumerate(special, start=1):
        is_adapted = isinstance(each, Adapted)
        memo[id(each)] = each.merged_module(floats) if is_adapted else _plain_linear(each, floats)
        if progress is not None:
            progress(number, len(special))
    # A stack of experts is no module where it is plain: its place is taken in the copy.
    stacks = [each for _, each in outer_modules(module) if isinstance(each, Experts4bit)]
    memo |= {id(each): each for each in stacks}
    copied = copy.deepcopy(module, memo)
    for owner in list(copied.modules()) if stacks else ():
        for name, each in list(owner.named_children()):
            if isinstance(each, Experts4bit):
                take_experts(owner, name, each.dequantize(floats))
    for parameter in copied.parameters():
        if parameter.is_floating_point() and (dtype is not None or parameter.element_size() < 4):
            parameter.data = parameter.data.to(floats)
        parameter.requires_grad_(False)
    return copied


def plain_tensor(name: str, tensor: Tensor, dtype: torch.dtype) -> MergedTensor:
    """A tensor as it is, rounded to `dtype` if it is floating-point."""
    target = dtype if tensor.is_floating_point() else tensor.dtype
    return MergedTensor(
        name, tuple(tensor.shape), target, lambda: tensor.detach().to(target, copy=True)
    )


def _plain_linear(layer: Linear4bit, dtype: torch.dtype) -> nn.Linear:
    bias = layer.bias
    linear = nn.Linear(layer.in_features, layer.out_features, bias is not None, device="meta")
    linear.weight = nn.Parameter(layer.dequantize(dtype), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().to(dtype, copy=True), requires_grad=False)
    linear.train(layer.training)
    return linear


def _dequantized(prefix: str, layer: Linear4bit, dtype: torch.dtype) -> Iterator[MergedTensor]:
    shape = layer.weight_shape
    yield MergedTensor(f"{prefix}weight", shape, dtype, lambda: layer.dequantize(dtype))
    if layer.bias is not None:
        yield plain_tensor(f"{prefix}bias", layer.bias, dtype)
