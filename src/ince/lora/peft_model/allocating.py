"""AdaLoRA in a model that trains: ranks given up step by step, and its term of the loss."""

from collections.abc import Iterable, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from ince.errors import AdapterError
from ince.lora.allocation.allocator import RankAllocator
from ince.lora.allocation.orthogonality import orthogonality
from ince.lora.config import AdaLoraConfig, PeftConfig

__all__ = ["allocate", "regularized"]


def allocate(
    model: nn.Module,
    configs: MutableMapping[str, PeftConfig],
    trained: Iterable[str],
    allocators: MutableMapping[str, RankAllocator],
    global_step: int,
) -> None:
    """One step of the AdaLoRA adapters that are trained.

    Args:
        model: the base, its layers adapted.
        configs: of its adapters; those that change are replaced.
        trained: adapters that take gradients.
        allocators: what is remembered of earlier steps, by adapter.
        global_step: see `RankAllocator.update_and_allocate`.

    Raises:
        AdapterError: no AdaLoRA adapter is trained.
        TrainingError: there are no gradients.
    """
    of_adalora = [name for name in trained if isinstance(configs[name], AdaLoraConfig)]
    if not of_adalora:
        raise AdapterError(
            "no AdaLoRA adapter is trained, and no other has ranks to give up",
            got=", ".join(f"{name} ({config.peft_type})" for name, config in configs.items()),
            do="train an adapter that was made with AdaLoraConfig",
        )
    for name in of_adalora:
        config = configs[name]
        assert isinstance(config, AdaLoraConfig)
        allocator = allocators.get(name)
        if allocator is None or allocator.config is not config:  # another adapter of this name
            allocator = allocators[name] = RankAllocator(model, config, name)
        configs[name] = allocator.update_and_allocate(global_step)


def regularized(
    outputs: Any, model: nn.Module, configs: MutableMapping[str, PeftConfig], names: Iterable[str]
) -> Any:
    """A training step's `outputs`, AdaLoRA's regularizer added to their loss, if they have one.

    Args:
        outputs: of the base's forward, changed in place.
        model: the base, its layers adapted.
        configs: of its adapters.
        names: of those that are active and trained.
    """
    loss = getattr(outputs, "loss", None)
    if not isinstance(loss, Tensor) or not torch.is_grad_enabled():
        return outputs
    for name in names:
        config = configs[name]
        if isinstance(config, AdaLoraConfig) and config.orth_reg_weight > 0:
            term = config.orth_reg_weight * orthogonality(model, name)
            outputs.loss = outputs.loss + term.to(loss.device, loss.dtype)
    return outputs
