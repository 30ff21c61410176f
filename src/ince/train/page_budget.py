"""What the pages of an optimizer may hold while a run has a limit on its memory.

Pages give way before forwards are cut: what leaves goes through a few buffers while the model
computes, whereas a smaller forward costs each step. So the memory guard probes the worst forward
and backward with as little state beside it as can be, gives the pages what is left, and takes
from them first when a step holds more than it may. Results do not depend on where state is.
"""

from collections.abc import Mapping

from ince.optim import PagedOptimizer
from ince.train.optimizer import pages_of, state_bytes
from ince.train.run import TrainRun

__all__ = ["PageBudget"]

# Four pages on their way, each with the parameters as they were.
_PASSING_PAGES = 4 * 2


class PageBudget:
    """Of one run, which may have no pages at all."""

    def __init__(self, run: TrainRun, limit_bytes: int | None) -> None:
        """Args:
        run: whose optimizer it is.
        limit_bytes: of the memory that the parameters are in; None: nothing is ever moved.
        """
        optimizer, section = run.optimizer, pages_of(run.config)
        self._optimizer = optimizer if isinstance(optimizer, PagedOptimizer) else None
        self._moves = False
        self._most: int | None = None
        self._state_bytes = state_bytes(run.config, run.parameters)
        if section is None:
            return
        is_device = next(iter(run.parameters.values())).device.type != "cpu"
        self._tier = "device" if is_device else "memory"
        self._page_bytes = section.page_bytes
        # On a CPU the device is memory, too.
        of_tier = (section.device,) if is_device else (section.device, section.memory)
        amounts = [amount for amount in of_tier if amount != "auto"]
        if len(amounts) == len(of_tier):
            self._most = max(sum(amounts), _PASSING_PAGES * section.page_bytes)
        if limit_bytes is None:
            return
        below = (section.memory, section.file) if is_device else (section.file,)
        self._moves = any(amount != 0 for amount in below)
        amount = section.device if is_device else section.memory
        self._given = None if amount == "auto" else amount
        self._budget = self._given

    @property
    def gives_way(self) -> bool:
        """Whether state can leave the memory that has a limit."""
        return self._moves

    @property
    def least_bytes(self) -> int:
        """What is held in any case, where it gives way."""
        return min(self._state_bytes, _PASSING_PAGES * self._page_bytes)

    @property
    def most_bytes(self) -> int:
        """What of the state is held where nothing gives way: all, or as much as was allowed."""
        return self._state_bytes if self._most is None else min(self._state_bytes, self._most)

    def step_aside(self) -> None:
        """Let all state that can leave, before something is measured without it."""
        if self._moves:
            self._set(0)

    def take(self, room_bytes: int) -> int:
        """Hold as much as was asked for and there is room for; returns how much that is."""
        wanted = self._state_bytes if self._given is None else self._given
        self._set(min(max(0, room_bytes), wanted))
        return min(self._budget or 0, self._state_bytes)

    def give_way(self, missing_bytes: int) -> int | None:
        """Hold so much less, or half where it is 0; returns what may be held now, and None where
        it is nothing already.
        """
        if not self._moves:
            return None
        held = self._state_bytes if self._budget is None else min(self._budget, self._state_bytes)
        if held <= 0:
            return None
        missing = missing_bytes if missing_bytes > 0 else held // 2
        self._set(held - max(missing, self._page_bytes))
        return self._budget

    def _set(self, num_bytes: int) -> None:
        assert self._optimizer is not None
        self._budget = num_bytes if num_bytes >= self._page_bytes else 0
        self._optimizer.set_budget(**{self._tier: self._budget})

    def facts(self) -> Mapping[str, object] | None:
        """For the record: bytes by tier and what moving them cost; None without pages."""
        if self._optimizer is None:
            return None
        usage = self._optimizer.usage()
        return {
            "device_bytes": usage.device_bytes,
            "memory_bytes": usage.memory_bytes,
            "file_bytes": usage.file_bytes,
            "moved_bytes": usage.moved_bytes,
            "waited_seconds": round(usage.waited_seconds, 3),
        }
