"""`Lion` and `PagedLion`: the sign of a momentum, half the state of AdamW."""

from collections.abc import Iterable
from typing import Any

from ince.optim.paged import PagedOptimizer
from ince.optim.pages import PagesConfig
from ince.optim.rules import LionRule

__all__ = ["Lion", "PagedLion"]


class Lion(PagedOptimizer):
    """Lion (arXiv:2302.06675), with its state where the parameters are.

    Args:
        params: parameters or groups, as of any optimizer.
        lr: learning rate: how far every element moves in a step.
        betas: of the momentum that is stepped by, and of the one that is kept.
        weight_decay: per step and unit of learning rate.
        maximize: go up the gradient.

    Raises:
        ConfigError: a number or a parameter cannot be.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, LionRule(), _options(lr, betas, weight_decay, maximize))


class PagedLion(PagedOptimizer):
    """`Lion`, whose state is on the device, in memory or in a file.

    Args:
        params, lr, betas, weight_decay, maximize: as of `Lion`.
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
        maximize: bool = False,
        pages: PagesConfig | None = None,
    ) -> None:
        options = _options(lr, betas, weight_decay, maximize)
        super().__init__(params, LionRule(), options, pages=pages or PagesConfig())


def _options(
    lr: float, betas: tuple[float, float], weight_decay: float, maximize: bool
) -> dict[str, Any]:
    return {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize}
