"""The plain model behind an adapted one: merged and dequantized weights, one at a time.

Merging returns new weights and leaves the model as it is. It goes to 16 or 32 bits and not
back to 4: quantizing again rounds a small update away.
"""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from ince.lora.base_identity import forget_origin
from ince.lora.layers.adapted import (
    Adapted,
    MergedTensor,
    base_of,
    outer_modules,
    own_parameters,
    plain_model,
)
from ince.lora.layers.plain import plain_copy, plain_tensors
from ince.lora.placement.replication import is_replicated

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

    Tied weights come once, under their first name, as in a saved checkpoint. Where adapters
    have made them different, each comes under its own.
    """
    model = plain_model(model)
    repeated = _repeated(model)
    for tensor in plain_tensors("", model, dtype):
        if tensor.name not in repeated:
            yield tensor


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


def merged_model(
    model: _Model,
    dtype: torch.dtype,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> _Model:
    """A new model of the same class with plain layers and merged weights.

    The given model, its adapters and its frozen base are left as they are; nothing is shared.
    What was tied is tied, unless adapters have made it different.

    Args:
        model: plain, with adapted or 4-bit layers, or with neither.
        dtype: of floating-point parameters.
        progress: told how many of these layers are done.
    """
    merged = plain_copy(model, dtype, progress=progress)
    forget_origin(merged)  # its weights are in no file
    quantizer = getattr(merged, "hf_quantizer", None)
    if quantizer is not None:  # transformers' word for it, which is no longer true
        quantizer.remove_quantization_config(merged)
    for group in _weights_by_name(model):
        if _is_whole(group):
            first, *others = (merged.get_submodule(name) for name in group)
            for module in others:
                module.register_parameter("weight", own_parameters(first)["weight"])
    config = getattr(merged, "config", None)
    if config is not None:
        make_config_plain(config, model, dtype)
    return merged


def make_config_plain(config: object, model: nn.Module, dtype: torch.dtype) -> None:
    """Change a copy of the config of `model`, a transformers model, to that of its merged form.

    It names the dtype and no quantization; and where adapters have made an output head and the
    input embedding different that were one weight, the two are tied no longer.
    """
    if hasattr(config, "quantization_config"):
        delattr(config, "quantization_config")
    setattr(config, "dtype", dtype)  # noqa: B010  transformers' configs are open
    broken = any(not _is_whole(group) for group in _weights_by_name(plain_model(model)))
    # T5's config is tied always; with False in it, it would scale its outputs otherwise.
    # transformers leaves weights apart that a checkpoint has apart.
    if broken and not hasattr(config, "scale_decoder_outputs"):
        setattr(config, "tie_word_embeddings", False)  # noqa: B010


_Key = tuple[int, ...]


def _weights_by_name(model: nn.Module) -> list[dict[str, _Key]]:
    """The modules of each weight that is shared, with what says which merged weight they have."""
    groups: dict[int, dict[str, _Key]] = {}
    for name, module in outer_modules(model):
        weight = own_parameters(base_of(module)).get("weight")
        if weight is not None and not is_replicated(model, name):
            key = module.weight_key() if isinstance(module, Adapted) else (id(weight),)
            groups.setdefault(id(weight), {})[name] = key
    return [group for group in groups.values() if len(group) > 1]


def _is_whole(group: dict[str, _Key]) -> bool:
    return len(set(group.values())) == 1


def _repeated(model: nn.Module) -> set[str]:
    """The names of tensors that come under another name before."""
    repeated: set[str] = set()
    broken: set[str] = set()
    for group in _weights_by_name(model):
        names = [f"{name}.weight" if name else "weight" for name in group]
        (repeated if _is_whole(group) else broken).update(names[1:])
    seen: set[int] = set()
    for name, module in outer_modules(model):
        for leaf, parameter in own_parameters(base_of(module)).items():
            full = f"{name}.{leaf}" if name else leaf
            is_again = id(parameter) in seen and full not in broken
            if is_again and not isinstance(module, Adapted) and not is_replicated(model, name):
                repeated.add(full)
            seen.add(id(parameter))
    return repeated
