"""The plain model behind an adapted one: merged and dequantized weights, one at a time.

Merging returns new weights and leaves the model as it is. It goes to 16 or 32 bits and not
back to 4: quantizing again rounds a small update away.
"""

import copy
from collections.abc import Iterator
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from ince.lora.layers.adapted import Adapted, MergedTensor, outer_modules
from ince.quant import Linear4bit

__all__ = [
    "MergedTensor",
    "make_config_plain",
    "merged_model",
    "merged_state_dict",
    "merged_tensors",
]

_Model = TypeVar("_Model", bound=nn.Module)


def merged_tensors(model: nn.Module, dtype: torch.dtype) -> Iterator[MergedTensor]:
    """The plain model's weights in its order; nothing is computed yet.

    Args:
        model: a `PeftModel`, or a model with adapted or 4-bit layers, or with neither.
        dtype: of floating-point parameters. Buffers that are stored keep theirs.

    Tied weights come once, under their first name, as in a saved checkpoint.
    """
    seen: set[int] = set()
    for name, module in outer_modules(_unwrapped(model)):
        prefix = f"{name}." if name else ""
        if isinstance(module, Adapted):
            yield from module.merged_tensors(prefix, dtype)
            continue
        if isinstance(module, Linear4bit):
            yield from _dequantized(prefix, module, dtype)
            continue
        for leaf, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield _as_is(prefix + leaf, parameter, dtype)
        for leaf, buffer in module.named_buffers(recurse=False):
            if leaf not in module._non_persistent_buffers_set:  # pyright: ignore[reportPrivateUsage]
                yield _as_is(prefix + leaf, buffer, buffer.dtype)


def merged_state_dict(
    model: nn.Module, dtype: torch.dtype = torch.bfloat16
) -> Iterator[tuple[str, Tensor]]:
    """Stream the plain model's weights: ``W + s · B A`` in float32, rounded once to `dtype`.

    At no time is more than one of them held here. Each is a new tensor.

    Raises:
        AdapterError: a merged weight is not finite.
    """
    for tensor in merged_tensors(model, dtype):
        yield tensor.name, tensor.compute()


def merged_model(model: _Model, dtype: torch.dtype) -> _Model:
    """A new model of the same class with plain layers and merged weights.

    The given model, its adapters and its frozen base are left as they are; nothing is shared.
    """
    # What the copy meets at these addresses it takes as copied already.
    memo: dict[int, object] = {
        id(module): module.merged_module(dtype)
        if isinstance(module, Adapted)
        else _plain_linear(module, dtype)
        for _, module in outer_modules(model)
        if isinstance(module, Adapted | Linear4bit)
    }
    merged = copy.deepcopy(model, memo)
    for parameter in merged.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
        parameter.requires_grad_(False)
    config = getattr(merged, "config", None)
    if config is not None:
        make_config_plain(config, model, dtype)
    return merged


def make_config_plain(config: object, model: nn.Module, dtype: torch.dtype) -> None:
    """Change a copy of the config of `model`, a transformers model, to that of its merged form.

    It names the dtype and no quantization; and when an output head that shares its weight
    with the input embedding was adapted, the two are tied no longer.
    """
    if hasattr(config, "quantization_config"):
        delattr(config, "quantization_config")
    setattr(config, "dtype", dtype)  # noqa: B010  transformers' configs are open
    if _adapts_tied_weight(model):
        setattr(config, "tie_word_embeddings", False)  # noqa: B010


def _adapts_tied_weight(model: nn.Module) -> bool:
    elsewhere = {
        id(parameter)
        for _, module in outer_modules(model)
        if not isinstance(module, Adapted)
        for parameter in module.parameters(recurse=False)
    }
    return any(
        id(parameter) in elsewhere
        for _, module in outer_modules(model)
        if isinstance(module, Adapted)
        for parameter in module.base_layer.parameters(recurse=False)
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
        yield _as_is(f"{prefix}bias", layer.bias, dtype)


def _as_is(name: str, tensor: Tensor, dtype: torch.dtype) -> MergedTensor:
    target = dtype if tensor.is_floating_point() else tensor.dtype
    return MergedTensor(
        name, tuple(tensor.shape), target, lambda: tensor.detach().to(target, copy=True)
    )


def _unwrapped(model: nn.Module) -> nn.Module:
    get_base_model = getattr(model, "get_base_model", None)
    return cast(nn.Module, get_base_model()) if callable(get_base_model) else model
