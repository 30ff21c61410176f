"""What of a model learns, by name, and putting saved values back into it."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ince.errors import CorruptFileError, TrainingError

__all__ = ["fill", "trainable"]


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that take gradients, in the model's order.

    Raises:
        TrainingError: there is none.
    """
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise TrainingError(
            "the model has nothing to train",
            expected="parameters with requires_grad",
            do="attach an adapter first: ince.get_peft_model(model, ince.LoraConfig(...))",
        )
    return found


def fill(tensors: Mapping[str, Tensor], saved: Mapping[str, Tensor], *, where: object) -> None:
    """Copy `saved` into `tensors`, in place.

    Raises:
        CorruptFileError: names or shapes are not the same.
    """
    if saved.keys() != tensors.keys():
        wrong = sorted(saved.keys() ^ tensors.keys())
        raise CorruptFileError(
            "a checkpoint has other parameters than this run",
            where=where,
            got=", ".join(wrong[:5]),
            do="start again with --fresh",
        )
    for name, tensor in tensors.items():
        if saved[name].shape != tensor.shape:
            raise CorruptFileError(
                "a checkpoint's parameter has another shape than this run's",
                where=f"{where}, {name}",
                got=tuple(saved[name].shape),
                expected=tuple(tensor.shape),
                do="start again with --fresh",
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(saved[name])
