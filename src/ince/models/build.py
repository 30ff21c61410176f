"""Build a model without its weights, then let the weights stream in.

transformers' own loading keeps the 16-bit model whole before anything can be quantized.
Here the large tensors of the model are made on the *meta* device (shape, no memory) and
each is replaced as it is read; a linear layer that is to be quantized is packed as soon
as its weight arrives. The peak is the finished model and one tensor.

How: transformers' model classes allocate what is to be loaded with ``torch.empty``
(``nn.Linear`` and ``nn.Embedding`` do), and compute everything else. So under
`EmptyOnMeta` only ``torch.empty`` goes to meta, and what is not in a checkpoint, such as
the frequencies of rotary embeddings, is computed for real.

Not every checkpoint can be streamed: names may be stored otherwise than the class has
them. `can_stream` says so, and the caller falls back to transformers' loader.
"""

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ince.errors import ModelReferenceError
from ince.formats.checkpoint import Checkpoint
from ince.quant import Linear4bit, NF4Config, quantizable_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["EmptyOnMeta", "can_stream", "stream_into"]


# First values that model classes and torch.nn.init give to parameters.
_FILLS = {
    "constant_",
    "fill_",
    "kaiming_uniform_",
    "normal_",
    "ones_",
    "trunc_normal_",
    "uniform_",
    "xavier_uniform_",
    "zero_",
    "zeros_",
}


class EmptyOnMeta(TorchFunctionMode):
    """Inside, ``torch.empty`` makes tensors without memory; all else is as always."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        elif getattr(func, "__name__", "") in _FILLS:
            filled = args[0] if args else kwargs.get("tensor")
            # Nothing to fill; torch would still trace what it does, for a second in all.
            if isinstance(filled, torch.Tensor) and filled.is_meta:
                return filled
        return func(*args, **kwargs)


def can_stream(model: "PreTrainedModel", checkpoint: Checkpoint, dtype: torch.dtype) -> bool:
    """Whether the checkpoint has exactly the tensors of the class, under the same names.

    A tied tensor may be absent, or present as an equal copy. Tensors that the class
    declares as leftovers of old versions may be present.

    Raises:
        ModelReferenceError: a tensor has another shape than the config says.
    """
    kept_in_float32 = _declared(model, "_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
    if dtype != torch.float32 and kept_in_float32:
        return False
    wanted = model.state_dict()
    tied: dict[str, str] = model.all_tied_weights_keys
    stored = {n: e for n, e in checkpoint.entries.items() if not _is_leftover(model, n)}
    if not stored.keys() <= wanted.keys() or wanted.keys() - stored.keys() - tied.keys():
        return False
    for name, entry in stored.items():
        if entry.shape != tuple(wanted[name].shape):
            raise ModelReferenceError(
                f"the weights do not fit the config: {name} has another shape",
                where=entry.file,
                got=list(entry.shape),
                expected=list(wanted[name].shape),
                do="config.json and the weights belong to different models; get both again",
            )
    copies = [(name, source) for name, source in tied.items() if name in stored]
    return all(torch.equal(checkpoint.tensor(a), checkpoint.tensor(b)) for a, b in copies)


def _is_leftover(model: nn.Module, name: str) -> bool:
    patterns = _declared(model, "_keys_to_ignore_on_load_unexpected")
    return any(re.search(pattern, name) for pattern in patterns)


def _declared(model: nn.Module, *attributes: str) -> list[str]:
    """What a model class says about its tensors, in attributes that transformers reads."""
    return [entry for attribute in attributes for entry in getattr(model, attribute, None) or ()]


def stream_into(
    model: "PreTrainedModel",
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype,
    device: torch.device,
    quantization: NF4Config | None,
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Replace every empty tensor of `model` by the stored one, quantizing on the way.

    Args:
        model: built under `EmptyOnMeta`; `can_stream` holds for it.
        checkpoint: the stored tensors.
        dtype: of every floating-point tensor that stays unquantized.
        device: where tensors go; a layer is quantized there.
        quantization: how linear layers are packed, or None.
        progress: told ``("loading", done, total)`` after each tensor.

    Raises:
        ModelReferenceError: a tensor of the model stayed empty.
    """
    tied = set(model.all_tied_weights_keys)
    awaited = _awaited_parameters(model, quantization)
    total = len(checkpoint.entries)
    for done, (name, stored) in enumerate(checkpoint, start=1):
        if name not in tied and not _is_leftover(model, name):
            owner, _, leaf = name.rpartition(".")
            module = model.get_submodule(owner)
            tensor = stored.to(device=device, dtype=dtype if stored.is_floating_point() else None)
            if tensor is stored and not (owner in awaited and leaf == "weight"):
                tensor = stored.clone()  # what is packed is read once, all else outlives the file
            _put(module, leaf, tensor)
            if owner in awaited:
                awaited[owner].discard(leaf)
                if not awaited[owner] and quantization is not None:
                    _pack(model, owner, quantization)
        if progress is not None:
            progress("loading", done, total)
    model.tie_weights()
    # Buffers that the class computed are still where it computed them.
    empty = [n for n, t in (*model.named_parameters(), *model.named_buffers()) if t.is_meta]
    if empty:
        raise ModelReferenceError(
            f"{len(empty)} tensors of the model were not filled",
            where=checkpoint.folder,
            got=", ".join(empty[:5]),
            do="the weights belong to another version of the model; get them again",
        )
    model.to(device)  # pyright: ignore[reportArgumentType]


def _put(module: nn.Module, leaf: str, tensor: torch.Tensor) -> None:
    if isinstance(getattr(module, leaf), nn.Parameter):
        setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))
    else:
        setattr(module, leaf, tensor)


def _awaited_parameters(model: nn.Module, quantization: NF4Config | None) -> dict[str, set[str]]:
    """Linear layer to pack → its parameters, all of which must have come before it is packed."""
    if quantization is None:
        return {}
    return {
        name: {leaf for leaf, _ in model.get_submodule(name).named_parameters(recurse=False)}
        for name in quantizable_names(model, quantization)
    }


def _pack(model: nn.Module, name: str, quantization: NF4Config) -> None:
    parent, _, leaf = name.rpartition(".")
    layer = cast(nn.Linear, model.get_submodule(name))
    packed = Linear4bit.from_linear(layer, quantization, name=f"{name}.weight")
    setattr(model.get_submodule(parent), leaf, packed)
