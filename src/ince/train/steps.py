"""Which rows each optimizer step sees: a function of the data, the seed and the step.

One pass shuffles the examples, packs them into rows, and cuts the rows into steps. Pass
after pass is laid end to end, each in an order of its own. Any step can be asked for
directly, which is how a resumed run goes on where it stopped.
"""

import math
from collections.abc import Sequence

from ince.data.example import Example
from ince.data.order import epoch_order
from ince.data.packing import PackingFacts, Row, pack_rows, single_rows
from ince.errors import TrainingError

__all__ = ["StepPlan"]


class StepPlan:
    """The rows of every step of a run."""

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        packing: bool,
        share_beginnings: bool = True,
        max_length: int,
        batch_tokens: int,
        epochs: float,
        max_steps: int | None,
        seed: int,
    ) -> None:
        self._examples = examples
        self._packing = packing
        self._share = share_beginnings
        self._max_length = max_length
        self._batch_tokens = batch_tokens
        self._seed = seed
        self._passes: dict[int, list[list[Row]]] = {}
        steps_in_pass = len(self._steps_of(0))
        if steps_in_pass == 0:
            raise TrainingError("there is nothing to train on", got="no example")
        # Passes differ by a row or so, as each packs another order.
        self._whole_passes = math.floor(epochs)
        num_steps = sum(len(self._steps_of(i)) for i in range(self._whole_passes))
        rest = epochs - self._whole_passes
        if rest > 0:
            num_steps += max(1, round(rest * len(self._steps_of(self._whole_passes))))
        self.num_steps = num_steps if max_steps is None else min(num_steps, max_steps)

    def _steps_of(self, epoch: int) -> list[list[Row]]:
        if epoch not in self._passes:
            order = epoch_order(len(self._examples), self._seed, epoch)
            rows = (
                pack_rows(self._examples, order, self._max_length, share=self._share)
                if self._packing
                else single_rows(self._examples, order)
            )
            self._passes[epoch] = self._cut(rows)
        return self._passes[epoch]

    def packing_facts(self) -> PackingFacts | None:
        """How well the rows of the first pass are filled; None where nothing is packed."""
        if not self._packing:
            return None
        rows = [row for step in self._steps_of(0) for row in step]
        return PackingFacts.of(rows, self._max_length)

    def _cut(self, rows: Sequence[Row]) -> list[list[Row]]:
        """Rows in their order, as many a step as `batch_tokens` holds; at least one."""
        steps: list[list[Row]] = []
        current: list[Row] = []
        num_tokens = 0
        for row in rows:
            if current and num_tokens + row.num_tokens > self._batch_tokens:
                steps.append(current)
                current, num_tokens = [], 0
            current.append(row)
            num_tokens += row.num_tokens
        if current:
            steps.append(current)
        return steps

    def epoch_of(self, step: int) -> float:
        """How many passes are done after `step` steps."""
        epoch, rest = 0, step
        while rest >= len(self._steps_of(epoch)):
            rest -= len(self._steps_of(epoch))
            epoch += 1
        return epoch + rest / len(self._steps_of(epoch))

    def rows(self, step: int) -> list[Row]:
        """The rows of one step, counted from 0 over all passes."""
        epoch, rest = 0, step
        while rest >= len(self._steps_of(epoch)):
            rest -= len(self._steps_of(epoch))
            epoch += 1
        return self._steps_of(epoch)[rest]
