"""Work on many rows at once, and on fewer where memory is refused.

An evaluation in mid-run meets a memory that training has filled, and its batch was chosen
without knowing. Losing the run to it would be absurd: rows do not depend on their company, so
half of them at a time gives the same, but for rounding. What was learnt about how many fit is
kept for the next batch, and for the next evaluation.

This is for forwards without gradients; training cuts its own (`ince.train.memory_guard`).
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from ince.errors import OutOfMemoryError
from ince.heap import give_back, is_out_of_memory

__all__ = ["Parts"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Parts:
    """How many rows one forward may have, as far as is known."""

    def __init__(
        self, *, what: str = "evaluation", say: Callable[[str], None] | None = None
    ) -> None:
        """Args:
        what: is done with the rows, for what is said.
        say: is told when fewer are taken.
        """
        self._what = what
        self._say = say
        self._most: int | None = None

    def of(
        self, rows: Sequence[_Item], work: Callable[[Sequence[_Item]], _Result]
    ) -> Iterator[_Result]:
        """What `work` gives for `rows`, all at once or in parts, in order.

        Args:
            rows: at least one.
            work: may be called again for rows that it failed on, in smaller parts.

        Raises:
            OutOfMemoryError: one row is too many.
        """
        waiting = [rows]
        while waiting:
            part = waiting.pop()
            most = len(part) if self._most is None else min(self._most, len(part))
            if most < len(part):
                waiting += [part[most:], part[:most]]
                continue
            done, why = self._attempt(part, work)
            if not why:
                # A list of one, as a result may be None.
                yield done[0]
                continue
            # Here the error and all that its frames held are gone.
            _release()
            self._cut(len(part), why)
            waiting.append(part)

    def _attempt(
        self, part: Sequence[_Item], work: Callable[[Sequence[_Item]], _Result]
    ) -> tuple[list[_Result], str]:
        try:
            return [work(part)], ""
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return [], (str(error) or "out of memory").splitlines()[0]

    def _cut(self, num_rows: int, why: str) -> None:
        if num_rows == 1:
            raise OutOfMemoryError(
                f"out of memory in {self._what}, with one row in a forward",
                got=why,
                do="free memory and run the same command again; or lower data.max_length or "
                "evaluate.max_new_tokens, or hold the base in 4 bits (model.quantize: nf4)",
            )
        self._most = num_rows // 2
        if self._say is not None:
            rows = "1 row" if self._most == 1 else f"{self._most} rows"
            self._say(f"memory: {self._what} was refused more; from here on {rows} at a time")


def _release() -> None:
    gc.collect()
    give_back()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
