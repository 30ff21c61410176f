"""AdamW (Loshchilov and Hutter, arXiv:1711.05101) over named parameters.

The step is torch's. What is ours is a state that is keyed by parameter *name* and holds
tensors only, so that it is saved as safetensors and loads into any order of parameters.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ince.errors import CorruptFileError

__all__ = ["build_optimizer", "load_optimizer_state", "optimizer_state"]

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def build_optimizer(
    parameters: Mapping[str, nn.Parameter],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> torch.optim.AdamW:
    """AdamW over the given parameters, in the order of their names."""
    ordered = [parameters[name] for name in sorted(parameters)]
    return torch.optim.AdamW(ordered, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


def optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """The moments as ``NAME.exp_avg``, ``NAME.exp_avg_sq`` and ``NAME.step``."""
    state: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        for moment, value in optimizer.state.get(parameter, {}).items():
            state[f"{name}.{moment}"] = value.detach().clone().contiguous()
    return state


def load_optimizer_state(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    state: Mapping[str, Tensor],
) -> None:
    """Put back what `optimizer_state` gave.

    Raises:
        CorruptFileError: a moment is missing, surplus or of another shape.
    """
    unused = set(state)
    for name, parameter in parameters.items():
        moments: dict[str, Tensor] = {}
        for moment in _MOMENTS:
            key = f"{name}.{moment}"
            if key not in state:
                raise CorruptFileError("an optimizer moment is missing", where=key)
            value = state[key]
            if moment != "step" and value.shape != parameter.shape:
                raise CorruptFileError(
                    "an optimizer moment has another shape than its parameter",
                    where=key,
                    got=tuple(value.shape),
                    expected=tuple(parameter.shape),
                )
            unused.discard(key)
            # The count stays on the CPU, as torch keeps it; moments live with the parameter.
            moments[moment] = value.clone() if moment == "step" else value.to(parameter.device)
        optimizer.state[parameter] = moments
    if unused:
        raise CorruptFileError(
            "optimizer moments of unknown parameters", got=", ".join(sorted(unused)[:5])
        )
