"""A frozen base made ready for training adapters on it."""

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from ince.errors import InputError

__all__ = ["cast_mixed_precision_params", "prepare_model_for_kbit_training"]

_Model = TypeVar("_Model", bound=nn.Module)


def prepare_model_for_kbit_training(
    model: _Model,
    use_gradient_checkpointing: bool = True,
    gradient_checkpointing_kwargs: Mapping[str, Any] | None = None,
    auto_clear_cache: bool = True,  # noqa: ARG001
) -> _Model:
    """Freeze a base, quantized or not, and let it recompute activations instead of keeping them.

    No weight is cast. PEFT makes all that is not quantized float32, embeddings and output head
    too, which for a large vocabulary is more than the quantization saved. A frozen weight gains
    nothing by it: norms compute in float32 by themselves, and adapters are float32 anyway.

    Args:
        model: of transformers.
        use_gradient_checkpointing: keep one activation a layer in training.
        gradient_checkpointing_kwargs: of `torch.utils.checkpoint`; by default
            ``{"use_reentrant": False}``.
        auto_clear_cache: without effect: nothing is cast, so that nothing is to be freed.

    Returns:
        `model`, changed in place.

    Raises:
        InputError: the model does not support gradient checkpointing.
    """
    model.requires_grad_(False)
    if not use_gradient_checkpointing:
        return model
    # Named `gradient_checkpointing_enable` before transformers 5, and going away since.
    enable = getattr(model, "activation_checkpointing_enable", None) or getattr(
        model, "gradient_checkpointing_enable", None
    )
    if not callable(enable):
        raise InputError(
            "the model does not support gradient checkpointing",
            got=type(model).__name__,
            do="give use_gradient_checkpointing=False",
        )
    settings = dict(gradient_checkpointing_kwargs or {"use_reentrant": False})
    (first, *_) = inspect.signature(enable).parameters
    enable(**{first: settings})
    # Reentrant checkpoints pass gradients on only where their inputs want them.
    require = getattr(model, "enable_input_require_grads", None)
    if callable(require) and not hasattr(model, "_require_grads_hook"):
        require()
    return model


def cast_mixed_precision_params(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast frozen floating-point parameters to `dtype`, trained ones to float32, in place.

    This rounds the base, if `dtype` has fewer bits.

    Args:
        model: any.
        dtype: torch.float16 or torch.bfloat16.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point():
            wanted = torch.float32 if parameter.requires_grad else dtype
            parameter.data = parameter.data.to(wanted)
