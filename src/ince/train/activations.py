"""What is kept between forward and backward: all of it, layer inputs alone, or those elsewhere.

    keep       every activation that a gradient needs
    recompute  the input of each layer; the layer runs once more in the backward pass
    offload    the same, and the inputs wait in pinned memory instead of on the accelerator

`recompute` is transformers' own gradient checkpointing (Chen et al., arXiv:1604.06174), which
models know. `offload` adds hooks on what autograd saves: inside a recomputed layer nothing is
saved, so what they see are the layers' inputs. Copies run on a stream of their own; the input of
the last layer stays, since it is wanted again at once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ince.errors import ConfigError, Problem
from ince.lora.layers.adapted import plain_model

__all__ = ["ActivationChoice", "Offloaded", "kept_activations"]

ActivationChoice = Literal["keep", "recompute", "offload"]

# Smaller ones are not worth a transfer.
_LEAST_BYTES = 1 << 20


@contextmanager
def kept_activations(model: nn.Module, choice: ActivationChoice) -> Iterator[None]:
    """Inside, training forwards of `model` keep what `choice` says; afterwards as before.

    Args:
        model: of transformers, wrapped or not.
        choice: see this module.

    Raises:
        ConfigError: the model cannot recompute its layers, or there is nowhere to offload from.
    """
    if choice == "keep":
        yield
        return
    base: Any = plain_model(model)
    if not getattr(base, "supports_gradient_checkpointing", False):
        raise _refused(
            f"this model's class cannot compute its layers twice: {type(base).__name__}",
            "leave activations at keep",
        )
    device = next(base.parameters()).device
    if choice == "offload" and device.type == "cpu":
        raise _refused(
            "activations of a model on a processor are in its memory already", "use recompute"
        )
    was_on = _recomputes(base)
    _call(base, "checkpointing_enable", "checkpointing_kwargs", {"use_reentrant": False})
    try:
        if choice == "offload":
            with Offloaded(device):
                yield
        else:
            yield
    finally:
        if not was_on:
            _call(base, "checkpointing_disable")


def _call(base: Any, method: str, option: str = "", value: object = None) -> None:
    """A method named after gradients in older versions of transformers, and now activations."""
    word = "activation" if hasattr(base, f"activation_{method}") else "gradient"
    getattr(base, f"{word}_{method}")(**({f"{word}_{option}": value} if option else {}))


def _recomputes(model: nn.Module) -> bool:
    # As a flag of its modules: the model's own name for it differs between versions.
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def _refused(what: str, do: str) -> ConfigError:
    return ConfigError(
        "activations cannot be kept like this",
        problems=[Problem("train.activations", what, do)],
    )


class Offloaded(torch.autograd.graph.saved_tensors_hooks):
    """Inside, large tensors that autograd saves on `device` wait in the host's memory.

    Args:
        device: whose tensors are moved. On one without streams copies are made at once.
    """

    def __init__(self, device: torch.device, *, least_bytes: int = _LEAST_BYTES) -> None:
        self._device = device
        self._least_bytes = least_bytes
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        # How many were moved in this forward, and in the one before it: the last one stays.
        self._num_now, self._num_before = 0, 0
        self._is_forward = True
        self.num_moved = 0
        super().__init__(self._pack, self._unpack)

    def _pack(self, tensor: Tensor) -> Tensor | tuple[Tensor, Any]:
        is_large = tensor.numel() * tensor.element_size() >= self._least_bytes
        if tensor.device.type != self._device.type or not is_large or tensor.is_leaf:
            return tensor
        if not self._is_forward:
            self._is_forward, self._num_now = True, 0
        self._num_now += 1
        if self._num_now == self._num_before:
            return tensor
        self.num_moved += 1
        if self._stream is None:
            return tensor.clone(), None
        host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            host.copy_(tensor, non_blocking=True)
            copied = self._stream.record_event()
        # The allocator must not give this memory away while it is read.
        tensor.record_stream(self._stream)
        return host, copied

    def _unpack(self, packed: Tensor | tuple[Tensor, Any]) -> Tensor:
        if self._is_forward:
            self._is_forward, self._num_before = False, self._num_now
        if isinstance(packed, Tensor):
            return packed
        host, copied = packed
        if copied is None:
            return host
        torch.cuda.current_stream(self._device).wait_event(copied)
        return host.to(self._device, non_blocking=True)
