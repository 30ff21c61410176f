"""`PagedAdamW8bit` and `PagedLion8bit`: state in 8 bits, on the device, in memory or in a file."""

from collections.abc import Iterable
from typing import Any

from ince.optim.paged import PagedOptimizer
from ince.optim.pages import PagesConfig
from ince.optim.rules import AdamW8bitRule, Lion8bitRule

__all__ = ["PagedAdamW8bit", "PagedLion8bit"]


class PagedAdamW8bit(PagedOptimizer):
    """`AdamW8bit`, whose state is on the device, in memory or in a file.

    Every step equals that of `AdamW8bit` to the bit, and state dicts load into each other, into
    and from those of bitsandbytes and of `torch.optim.AdamW`.

    Args:
        params: parameters or groups, as of any optimizer.
        lr: learning rate.
        betas: decays of the moments.
        eps: added to the root of the second moment.
        weight_decay: per step and unit of learning rate.
        pages: budgets of the tiers; None: memory without limit, and nothing on an accelerator.

    Raises:
        ConfigError: a number, a parameter or the folder of the file cannot be.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        pages: PagesConfig | None = None,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, AdamW8bitRule(), defaults, pages=pages or PagesConfig())


class PagedLion8bit(PagedOptimizer):
    """`Lion8bit`, whose state is on the device, in memory or in a file.

    Args:
        params: parameters or groups, as of any optimizer.
        lr: how far each weight moves in a step.
        betas: how much of the moment is in a step's direction, and how much is kept.
        weight_decay: per step and unit of learning rate.
        pages: budgets of the tiers; None: memory without limit, and nothing on an accelerator.

    Raises:
        ConfigError: a number, a parameter or the folder of the file cannot be.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        pages: PagesConfig | None = None,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        super().__init__(params, Lion8bitRule(), defaults, pages=pages or PagesConfig())
