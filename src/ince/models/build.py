"""Build a model without its weights, then let the weights come in one by one.

transformers' own loading keeps the 16-bit model whole before anything can be quantized.
Here the large tensors of the model are made on the *meta* device (shape, no memory) and
each is replaced as it comes from `ince.models.streaming`; a linear layer whose weight comes
packed becomes a `Linear4bit`. The peak is the finished model and a few MiB.

How: transformers' model classes allocate what is to be loaded with ``torch.empty``
(``nn.Linear`` and ``nn.Embedding`` do), and compute everything else. So under
`EmptyOnMeta` only ``torch.empty`` goes to meta, and what is not in a checkpoint, such as
the frequencies of rotary embeddings, is computed for real.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ince.errors import ModelReferenceError
from ince.models.streaming import Finished
from ince.quant import Linear4bit, NF4Config, quantizable_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["EmptyOnMeta", "check_filled", "place", "weights_to_pack"]


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


def weights_to_pack(model: nn.Module, config: NF4Config | None) -> frozenset[str]:
    """Names of the weights to pack.

    Raises:
        QuantError: see `quantizable_names`.
    """
    if config is None:
        return frozenset()
    return frozenset(f"{name}.weight" for name in quantizable_names(model, config))


def place(model: nn.Module, finished: Iterable[Finished]) -> None:
    """Put tensors into the places of the model's empty ones, as they come."""
    places: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        places.setdefault(id(module), []).append(name)
    for each in finished:
        if each.tensor is None:
            assert each.config is not None
            linear = model.get_submodule(each.target.name.rpartition(".")[0])
            assert isinstance(linear, nn.Linear)
            layer = _packed_layer(linear, each.parts, each.config)
            for name in places[id(linear)]:
                parent, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(parent), leaf, layer)
        else:
            _put(model, each.target.name, each.tensor)


def check_filled(model: "PreTrainedModel", folder: Path) -> None:
    """Raise the error of a model of which a tensor stayed empty.

    Raises:
        ModelReferenceError: one did.
    """
    empty = [n for n, t in (*model.named_parameters(), *model.named_buffers()) if t.is_meta]
    if empty:
        raise ModelReferenceError(
            f"{len(empty)} tensors of the model were not filled",
            where=folder,
            got=", ".join(empty[:5]),
            do="the weights belong to another version of the model; get them again",
        )


def _put(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    # A packed layer has no bias until it comes.
    is_parameter = leaf in module._parameters  # pyright: ignore[reportPrivateUsage]
    value = nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor
    setattr(module, leaf, value)


def _packed_layer(
    linear: nn.Linear, parts: Mapping[str, torch.Tensor], config: NF4Config
) -> Linear4bit:
    layer = Linear4bit(linear.in_features, linear.out_features, config=config, device="meta")
    for part, tensor in parts.items():
        setattr(layer, part, tensor)
    # A bias that has come is kept; one that has not is empty still, and put here when it comes.
    layer.bias = linear.bias
    return layer.train(linear.training)
