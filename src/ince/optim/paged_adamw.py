"""`PagedAdamW`: torch's AdamW to the bit, with its state on three tiers."""

from collections.abc import Iterable
from typing import Any

from ince.optim.paged import PagedOptimizer
from ince.optim.pages import PagesConfig
from ince.optim.rules import AdamWRule

__all__ = ["PagedAdamW"]


class PagedAdamW(PagedOptimizer):
    """AdamW (arXiv:1711.05101) whose moments are on the device, in memory or in a file.

    Every step equals that of `torch.optim.AdamW` with ``foreach=False`` to the bit, and their
    state dicts load into each other.

    Args:
        params: parameters or groups, as of any optimizer.
        lr: learning rate.
        betas: decays of the moments.
        eps: added to the root of the second moment.
        weight_decay: per step and unit of learning rate.
        maximize: go up the gradient.
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
        maximize: bool = False,
        pages: PagesConfig | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, AdamWRule(), defaults, pages=pages or PagesConfig())
