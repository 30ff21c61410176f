"""From the name of an optimizer, as a recipe has it, to one over named parameters."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

import torch
from torch import nn

from ince.optim.eight_bit import AdamW8bit, Lion8bit
from ince.optim.paged_adamw import PagedAdamW
from ince.optim.paged_eight_bit import PagedAdamW8bit, PagedLion8bit
from ince.optim.paged_lion import Lion, PagedLion
from ince.optim.pages import PagesConfig

__all__ = ["OPTIMIZERS", "OptimizerName", "build_optimizer", "is_paged", "set_learning_rate"]

OptimizerName = Literal[
    "adamw",
    "adamw_8bit",
    "paged_adamw",
    "paged_adamw_8bit",
    "lion",
    "lion_8bit",
    "paged_lion",
    "paged_lion_8bit",
]

OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adamw_8bit": AdamW8bit,
    "paged_adamw": PagedAdamW,
    "paged_adamw_8bit": PagedAdamW8bit,
    "lion": Lion,
    "lion_8bit": Lion8bit,
    "paged_lion": PagedLion,
    "paged_lion_8bit": PagedLion8bit,
}


def is_paged(name: OptimizerName) -> bool:
    """Whether an optimizer's state is in pages."""
    return name.startswith("paged_")


def build_optimizer(
    parameters: Mapping[str, nn.Parameter],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    lr_ratios: Mapping[str, float] | None = None,
    name: OptimizerName = "adamw",
    pages: PagesConfig | None = None,
) -> torch.optim.Optimizer:
    """An optimizer over the given parameters, in the order of their names.

    Args:
        parameters: by name.
        lr: learning rate. betas, eps, weight_decay: as of torch's; Lion has no eps.
        lr_ratios: by name, a factor on the learning rate; 1 where there is none. Parameters of
            one factor are a group, which has it as ``lr_ratio`` (see `set_learning_rate`).
        name: of the optimizer.
        pages: budgets of one that pages.

    Raises:
        ConfigError: the folder of the pages cannot be used.
    """
    of_ratio: dict[float, list[nn.Parameter]] = {}
    for each in sorted(parameters):
        of_ratio.setdefault((lr_ratios or {}).get(each, 1.0), []).append(parameters[each])
    groups = [
        {"params": of_ratio[ratio], "lr": lr * ratio, "lr_ratio": ratio}
        for ratio in sorted(of_ratio)
    ]
    options: dict[str, Any] = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
    if "lion" not in name:
        options["eps"] = eps
    if is_paged(name):
        options["pages"] = pages
    return OPTIMIZERS[name](groups, **options)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of the next step, times the ``lr_ratio`` of each group that has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * cast("float", group.get("lr_ratio", 1.0))
