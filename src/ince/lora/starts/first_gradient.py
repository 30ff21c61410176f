"""The first gradient of frozen weights, one layer at a time and never all at once.

A layer's gradient is gᵀ x, of what it was given and of what came back. Both are at hand in the
backward pass, where the gradient is made, reduced to its leading directions and dropped: the
memory of one layer's gradient, not of the model's. Weights stay frozen, and may be in 4 bits.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ince.errors import AdapterError, TrainingError
from ince.lora.starts.lora_ga import Gradient
from ince.lora.starts.modes import in_mode

__all__ = ["first_gradients"]

# Directions kept per direction asked for: those that only the sum over batches shows.
_KEPT_PER_DIRECTION = 2
_MIN_KEPT = 64


def first_gradients(
    layers: Mapping[str, tuple[nn.Module, int]],
    model: nn.Module,
    train_step: Callable[[], object],
) -> dict[str, Gradient]:
    """Run `train_step` and return the leading directions of each layer's summed gradient.

    Args:
        layers: linear ones, (..., D) to (..., O), by name, with the directions needed of each.
        model: that holds them. It is in training mode meanwhile, all frozen, and put back.
        train_step: runs forward and ``backward()`` on one batch or several.

    Raises:
        AdapterError: a layer got no gradient.
        TrainingError: a gradient is not finite.
    """
    found: dict[str, Gradient] = {}
    is_training = in_mode(model, training=True)
    with _frozen(model), is_training, ExitStack() as stack, torch.enable_grad():
        for name, (layer, num_directions) in layers.items():
            hook = _catch(name, max(num_directions * _KEPT_PER_DIRECTION, _MIN_KEPT), found)
            stack.callback(layer.register_forward_hook(hook).remove)
        train_step()
    missing = [name for name in layers if name not in found]
    if missing:
        raise AdapterError(
            f"{len(missing)} of {len(layers)} layers got no gradient",
            where=", ".join(missing[:5]),
            expected="a train_step that calls loss.backward(), and data that reaches each layer",
            do="give it more batches, or leave these layers out of target_modules",
        )
    return {name: found[name] for name in layers}


def _catch(name: str, num_kept: int, found: dict[str, Gradient]) -> Callable[..., Tensor]:
    def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        # A checkpointed pass comes again, with gradients on.
        if not torch.is_grad_enabled():
            return output
        x = args[0].detach()
        # The graph begins at the first layer of interest: nothing before it is trained. A
        # copy, since what follows may write into it, and not into a leaf.
        y = output if output.requires_grad else output.detach().requires_grad_().clone()

        @torch.no_grad()
        def caught(grad: Tensor) -> None:
            g_NO = grad.reshape(-1, grad.shape[-1]).float()
            gradient_OD = g_NO.t() @ x.reshape(-1, x.shape[-1]).float()
            if not bool(torch.isfinite(gradient_OD).all()):
                raise TrainingError(
                    "the first gradient of a layer is not finite",
                    where=name,
                    do="check the batch and the loss; run the model in bfloat16 or float32",
                )
            before = found.get(name)
            if before is None:
                found[name] = Gradient.of(gradient_OD, num_kept)
            else:
                found[name] = before.plus(gradient_OD)

        y.register_hook(caught)
        return y

    return hook


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter is trainable; those that were are so again on leaving."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_()
