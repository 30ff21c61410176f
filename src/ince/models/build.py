"""Build a model without its weights, then let the weights come in one by one.

transformers' own loading keeps the 16-bit model whole before anything can be quantized.
Here the large tensors of the model are made on the *meta* device (shape, no memory) and
each is replaced as it comes from `ince.models.streaming`; a linear layer whose weight comes
packed becomes a `Linear4bit`, and fused experts an `Experts4bit`. The peak is the finished model
and a few MiB.

How: transformers' model classes allocate what is to be loaded with ``torch.empty``
(``nn.Linear`` and ``nn.Embedding`` do), and compute everything else. So under
`EmptyOnMeta` only ``torch.empty`` goes to meta, and what is not in a checkpoint, such as
the frequencies of rotary embeddings, is computed for real.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ince.errors import ModelReferenceError
from ince.models.streaming import Finished
from ince.quant import (
    Experts4bit,
    Linear4bit,
    NF4Config,
    quantizable_names,
    quantizable_stacks,
)
from ince.quant.experts4bit import put_experts, stack_names
from ince.quant.packed_module import PackedModule

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["EmptyOnMeta", "Places", "check_filled", "weights_to_pack"]


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
        QuantError: see `quantize_model`.
    """
    if config is None:
        return frozenset()
    layers = (f"{name}.weight" for name in quantizable_names(model, config))
    return frozenset((*layers, *quantizable_stacks(model, config)))


class Places:
    """The places of a model's empty tensors. They are filled as tensors come.

    Args:
        model: built under `EmptyOnMeta`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._names: dict[int, list[str]] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            self._names.setdefault(id(module), []).append(name)

    def put(self, finished: Finished) -> None:
        """Put a tensor in its place; one that comes packed makes its layer a `Linear4bit`."""
        name = finished.target.name
        if finished.tensor is not None:
            _put(self._model, name, finished.tensor)
            return
        assert finished.config is not None
        owner, _, leaf = name.rpartition(".")
        module = self._model.get_submodule(owner)
        if leaf in stack_names(module):
            stack = Experts4bit(finished.target.shape, config=finished.config, device="meta")
            _set_parts(stack, finished.parts)
            put_experts(module, leaf, stack)
            return
        if not isinstance(module, nn.Linear) or leaf != "weight":
            raise ModelReferenceError(
                "a tensor is packed that is neither a linear layer's weight nor fused experts",
                where=name,
                got=type(module).__name__,
                do="use the original model that this one was made from",
            )
        layer = _packed_layer(module, finished.parts, finished.config)
        for place in self._names[id(module)]:
            parent, _, leaf = place.rpartition(".")
            setattr(self._model.get_submodule(parent), leaf, layer)


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
    _set_parts(layer, parts)
    # A bias that has come is kept; one that has not is empty still, and put here when it comes.
    layer.bias = linear.bias
    return layer.train(linear.training)


def _set_parts(module: PackedModule, parts: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in parts.items():
        setattr(module, name, tensor)
