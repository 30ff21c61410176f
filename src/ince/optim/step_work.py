"""A step, page by page: which pieces of a page take part, and what their parameters were."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ince.optim.pages.layout import Piece
from ince.optim.pages.page import Page
from ince.optim.rules import Rule
from ince.optim.stretches import Stretches

__all__ = ["Job", "StepWork"]


class Job:
    """One parameter's step."""

    def __init__(
        self, parameter: Tensor, gradient: Tensor, options: Mapping[str, Any], step: int
    ) -> None:
        self.stretches = Stretches(parameter, gradient)
        self.options = options
        self.step = step


class StepWork:
    """What the pages' `Work` is in a step.

    Args:
        rule: of the optimizer.
        jobs: by parameter, which is the key of its pieces. Others have no gradient in this step.
    """

    def __init__(self, rule: Rule, jobs: Mapping[Tensor, Job]) -> None:
        self._rule = rule
        self._jobs = jobs

    def compute(self, page: Page, states: Tensor) -> None:
        """Take the step of the page's pieces."""
        for piece, job in self._taking_part(page):
            stretch = slice(piece.start, piece.start + piece.length)
            self._rule.step_(
                job.stretches.values[stretch],
                job.stretches.gradient[stretch],
                piece.states(states),
                options=job.options,
                step=job.step,
            )

    def keep_old(self, page: Page, old: Tensor) -> None:
        """Copy the parameters' values behind the page's states."""
        for piece, job in self._taking_part(page):
            values = job.stretches.values[piece.start : piece.start + piece.length]
            _copy_down(values, piece.old_values(old))

    def put_back(self, page: Page, old: Tensor) -> None:
        """Give the parameters their values back."""
        for piece, job in self._taking_part(page):
            values = job.stretches.values[piece.start : piece.start + piece.length]
            values.copy_(piece.old_values(old))

    def _taking_part(self, page: Page) -> Iterator[tuple[Piece, Job]]:
        for piece in page.plan.pieces:
            job = self._jobs.get(piece.item.key)  # pyright: ignore[reportArgumentType]
            if job is not None:
                yield piece, job


def _copy_down(values: Tensor, into: Tensor) -> None:
    """From wherever values are to memory."""
    if values.device.type == "cpu":
        # By NumPy: PyTorch would copy in all threads, and wait for the one whose processor is
        # busy reading and writing pages.
        into.view(torch.uint8).numpy()[:] = values.view(torch.uint8).numpy()
    else:
        into.copy_(values, non_blocking=True)
