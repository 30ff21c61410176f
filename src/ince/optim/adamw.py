"""AdamW (Loshchilov and Hutter, arXiv:1711.05101) over named parameters.

The step is torch's. What is ours is a state that is keyed by parameter *name* and holds
tensors only, so that it is saved as safetensors and loads into any order of parameters.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ince.errors import CorruptFileError
from ince.optim.paged import PagedOptimizer

__all__ = ["build_optimizer", "load_optimizer_state", "optimizer_state", "set_learning_rate"]

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def build_optimizer(
    parameters: Mapping[str, nn.Parameter],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    lr_ratios: Mapping[str, float] | None = None,
) -> torch.optim.AdamW:
    """AdamW over the given parameters, in the order of their names.

    Args:
        parameters: by name.
        lr: learning rate. betas, eps, weight_decay: as of torch's.
        lr_ratios: by name, a factor on the learning rate; 1 where there is none. Parameters of
            one factor are a group, which has it as ``lr_ratio`` (see `set_learning_rate`).
    """
    of_ratio: dict[float, list[nn.Parameter]] = {}
    for name in sorted(parameters):
        of_ratio.setdefault((lr_ratios or {}).get(name, 1.0), []).append(parameters[name])
    groups = [
        {"params": of_ratio[ratio], "lr": lr * ratio, "lr_ratio": ratio}
        for ratio in sorted(of_ratio)
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of the next step, times the ``lr_ratio`` of each group that has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_ratio", 1.0)


def optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """The moments as ``NAME.exp_avg``, ``NAME.exp_avg_sq`` and ``NAME.step``, all in memory.

    An optimizer that pages gives them one at a time (`PagedOptimizer.entries`).
    """
    if isinstance(optimizer, PagedOptimizer):
        return {entry.name: entry.read() for entry in optimizer.entries(parameters)}
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
    if isinstance(optimizer, PagedOptimizer):
        optimizer.load_entries(parameters, state.keys(), state.__getitem__)
        return
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
