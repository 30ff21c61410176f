"""Keeps a run within its memory: by a probe before step 1, and by smaller forwards later.

An optimizer that pages gives way first (`ince.train.page_budget`). What does not fit even then
is cut: a forward gets half of its rows, and a step more forwards. Rows,
global batch and weighting by targets stay, so the gradient does, too, but for rounding. Where
not even one row fits, no cut helps, and an error says what would.
"""

from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

from ince.data import Row
from ince.errors import DiskFullError, TrainingError
from ince.record import RunRecord
from ince.train.memory import is_out_of_memory, memory_of
from ince.train.memory_probe import Probe, probe, worst_groups
from ince.train.micro_batch import Cut, Cuts, halved, shape_of
from ince.train.observer import StepReport
from ince.train.optimizer import has_state
from ince.train.page_budget import PageBudget
from ince.train.run import TrainRun
from ince.train.step import StepGradient
from ince.units import format_bytes

__all__ = ["MemoryGuard"]

# A device's free memory is never twice the same; what is smaller by less is the same limit.
_SAME_LIMIT = 0.98

# Steps in a row above the limit before the cut: one may be an accident of the heap.
_NUM_STRIKES = 2

_WHAT_HELPS = (
    "lower data.max_length or lora.r, hold the base in 4 bits (model.quantize: nf4), "
    "or raise train.memory"
)
_KEEP_LESS = "set train.activations: recompute, "


class MemoryGuard:
    """Of one run. `prepare`, then `step` in place of the run's own; a context manager."""

    def __init__(self, run: TrainRun, *, record: RunRecord | None = None) -> None:
        """Args:
        run: that is stepped; resumed already.
        record: gets a section ``memory``.
        """
        self._run = run
        self._record = record
        self._memory = memory_of(next(iter(run.parameters.values())).device, run.config.memory)
        digest = run.state.recipe_digest
        self._earlier = Cuts.read(run.run_dir, recipe_digest=digest)
        self._cuts = self._earlier or Cuts(
            run.run_dir,
            recipe_digest=digest,
            limit_bytes=self._memory.limit_bytes,
            cuts=[Cut(0, run.micro_batch_tokens)],
        )
        self._pages = PageBudget(run, self._memory.limit_bytes)
        self._probes: list[Probe] = []
        self._held_bytes = 0
        self._to_come_bytes = 0
        self._measured_bytes = 0
        self._num_strikes = 0
        self._told = False
        self._events: list[dict[str, object]] = []

    # ------------------------------------------------------------------------- before the steps

    def prepare(self) -> None:
        """Choose the micro-batch: as before where that was within this limit, else by a probe.

        Raises:
            TrainingError: not even one row fits.
        """
        run, limit = self._run, self._memory.limit_bytes
        step = run.state.step
        if self._earlier is not None and _covers(limit, self._earlier.limit_bytes):
            run.micro_batch_tokens = self._cuts.at(step)
            if not self._pages.gives_way:
                self._note()
                return
        if self._earlier is not None:
            run.micro_batch_tokens = self._cuts.at(step)
        self._pages.step_aside()
        self._memory.release()
        self._held_bytes = self._memory.held()
        self._to_come_bytes = _to_come_bytes(run, self._pages)
        while not self._fits():
            self._shrink(self._probes[-1].rows)
        self._give_pages_the_rest()
        self._cuts.limit_bytes = limit
        if self._cuts.at(step) != run.micro_batch_tokens:
            self._cuts.add(step, run.micro_batch_tokens)
        self._keep_cuts()
        self._say_probe()
        self._note()

    def _give_pages_the_rest(self) -> None:
        limit, fitting = self._memory.limit_bytes, self._fitting
        if not self._pages.gives_way or limit is None or not fitting:
            return
        room = limit - max(each.peak_bytes for each in fitting) - _gradient_bytes(self._run)
        held = self._pages.take(room)
        self._run.observer.said(
            f"memory: optimizer state gets {format_bytes(held)}, the rest is in lower tiers"
        )

    def _fits(self) -> bool:
        """Probe the worst of all steps as they are cut now, up to the first that does not fit."""
        for rows in worst_groups(self._run.plan, self._run.micro_batch_tokens):
            found = probe(
                rows,
                model=self._run.model,
                memory=self._memory,
                rehearse=self._run.rehearse,
                spare_bytes=self._to_come_bytes,
            )
            self._probes.append(found)
            if not found.fits:
                return False
        return True

    @property
    def _fitting(self) -> list[Probe]:
        return [each for each in self._probes if each.fits]

    def _shrink(self, rows: Sequence[Row]) -> None:
        run, limit = self._run, self._memory.limit_bytes
        smaller = halved(rows, None)
        if smaller is None:
            self._note()
            raise self._too_small(rows)
        run.micro_batch_tokens = smaller
        given = "there is" if limit is None else format_bytes(limit)
        run.observer.said(
            f"memory: {self._probes[-1]} need more than {given}; a forward gets {smaller:,} tokens "
            "at most, and a step more forwards: the global batch stays"
        )

    def _too_small(self, rows: Sequence[Row]) -> TrainingError:
        limit = self._memory.limit_bytes
        _, length = shape_of(rows)
        base_alone = limit is not None and self._held_bytes > limit
        return TrainingError(
            "the base and the adapter alone do not fit into memory"
            if base_alone
            else "not even one row fits into memory",
            where=f"a row of {length:,} tokens ({rows[0].examples[0].source})",
            got=f"{format_bytes(self._held_bytes)} before the first forward"
            if base_alone
            else f"more than {format_bytes(self._probes[-1].peak_bytes)} for its forward and "
            f"backward, and {format_bytes(self._to_come_bytes)} for gradients and optimizer",
            expected=None
            if limit is None
            else f"at most {format_bytes(limit)} ({self._memory.limit_name})",
            do=self._what_helps(),
        )

    def _say_probe(self) -> None:
        if not self._probes:
            return
        worst = max(self._fitting, key=lambda each: each.peak_bytes)
        limit = self._memory.limit_bytes
        of = "" if limit is None else f" of {format_bytes(limit)} ({self._memory.limit_name})"
        self._run.observer.said(
            f"memory: {format_bytes(worst.peak_bytes + self._to_come_bytes)}{of} at the worst "
            f"micro-batch, {worst}{self._beside_plan()}"
        )

    def _beside_plan(self) -> str:
        """What was planned for the same, in words; empty where nothing was."""
        plan = None if self._record is None else self._record.get("plan")
        if not plan:
            return ""
        planned = int(plan["planned_bytes"])
        if next(iter(self._run.parameters.values())).device.type != "cpu":
            planned -= int(plan["parts"]["framework"])  # no allocator counts the context beside it
        return f"; planned were {format_bytes(planned)}"

    # ------------------------------------------------------------------------------- the steps

    def step(self) -> StepReport:
        """A step of the run, with smaller forwards when memory is refused.

        Raises:
            TrainingError: as the run's own; or one row does not fit.
        """
        run = self._run
        rows = run.plan.rows(run.state.step)
        run.micro_batch_tokens = self._cuts.at(run.state.step)
        with self._memory.peak() as peak:
            report = run.step(self._backward)
        self._measured_bytes = max(self._measured_bytes, peak.num_bytes)
        self._judge(peak.num_bytes, rows)
        return replace(report, peak_bytes=peak.num_bytes, held_bytes=self._memory.held())

    def take_events(self) -> list[dict[str, object]]:
        """What happened since this was last asked, for the log."""
        events, self._events = self._events, []
        return events

    def _backward(self) -> StepGradient:
        run = self._run
        while True:
            found = self._attempt()
            if isinstance(found, StepGradient):
                return found
            # Here the error and all that its frames held are gone.
            for parameter in run.parameters.values():
                parameter.grad = None
            self._memory.release()
            rows = run.plan.rows(run.state.step)
            if self._shrink_pages(0, from_step=run.state.step, why=found):
                continue
            if not self._cut(rows, from_step=run.state.step, why=found):
                raise self._refused_in_step(rows, found)

    def _attempt(self) -> StepGradient | str:
        try:
            return self._run.backward()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return (str(error) or "out of memory").splitlines()[0]

    def _judge(self, peak_bytes: int, rows: Sequence[Row]) -> None:
        limit = self._memory.limit_bytes
        if limit is None or peak_bytes <= limit:
            self._num_strikes = 0
            return
        self._memory.release()
        self._num_strikes += 1
        if self._num_strikes == _NUM_STRIKES:
            why = f"steps held {format_bytes(peak_bytes)}, more than {format_bytes(limit)}"
            step = self._run.state.step
            if self._shrink_pages(peak_bytes - limit, from_step=step, why=why):
                pass
            elif not self._cut(rows, from_step=self._run.state.step, why=why) and not self._told:
                self._told = True
                self._run.observer.said(f"memory: {why}, and a forward has one row already")
            self._num_strikes = 0

    def _shrink_pages(self, missing_bytes: int, *, from_step: int, why: str) -> bool:
        """Let state leave for a lower tier, half of it where nobody knows how much is missing."""
        left = self._pages.give_way(missing_bytes)
        if left is None:
            return False
        self._memory.release()
        self._events.append({"event": "pages shrunk", "what": why, "budget_bytes": left})
        self._run.observer.said(
            f"step {from_step + 1}: memory: {why}; optimizer state gets {format_bytes(left)} from "
            "here on, the rest is in lower tiers"
        )
        self._note()
        return True

    def _cut(self, rows: Sequence[Row], *, from_step: int, why: str) -> bool:
        """Halve the forwards of `rows`, and so of all steps from `from_step`; whether it helps."""
        run = self._run
        smaller = halved(rows, run.micro_batch_tokens)
        if smaller is None:
            return False
        run.micro_batch_tokens = smaller
        self._cuts.add(from_step, smaller)
        self._keep_cuts()
        self._events.append(
            {"event": "micro-batch cut", "what": why, "micro_batch_tokens": smaller}
        )
        run.observer.said(
            f"step {from_step + 1}: memory: {why}; a forward gets {smaller:,} tokens at most from "
            "here on, the global batch stays"
        )
        self._note()
        return True

    def _refused_in_step(self, rows: Sequence[Row], said: str) -> TrainingError:
        longest = max(rows, key=lambda row: row.num_tokens)
        return TrainingError(
            f"out of memory at step {self._run.state.step + 1}, with one row in a forward",
            where=f"a row of {longest.num_tokens:,} tokens ({longest.examples[0].source})",
            got=said,
            do=f"free memory and run the same command again, or {self._what_helps()}",
        )

    def _what_helps(self) -> str:
        keeps = self._run.config.activations == "keep"
        return _KEEP_LESS + _WHAT_HELPS if keeps else _WHAT_HELPS

    # ------------------------------------------------------------------------------ what is kept

    def _keep_cuts(self) -> None:
        try:
            self._cuts.save()
        except DiskFullError as error:
            # The next checkpoint holds the current cut, and waits for space.
            self._run.observer.said(f"memory: how steps are cut cannot be written: {error.what}")

    def _note(self) -> None:
        if self._record is None:
            return
        memory, before = self._memory, self._record.get("memory") or {}
        fitting = [each.peak_bytes for each in self._fitting]
        probed = {
            "held_bytes": self._held_bytes,
            "probes": [each.to_dict() for each in self._probes],
            "expected_bytes": max(fitting) + self._to_come_bytes if fitting else None,
        }
        self._record["memory"] = {
            **before,
            **(probed if self._probes else {}),
            "limit_bytes": memory.limit_bytes,
            "limit": None if memory.limit_bytes is None else memory.limit_name,
            "micro_batch_tokens": self._run.micro_batch_tokens,
            "cuts": [
                {"step": cut.step, "micro_batch_tokens": cut.micro_batch_tokens}
                for cut in self._cuts.cuts
            ],
            "measured_bytes": max(self._measured_bytes, before.get("measured_bytes") or 0),
            "pages": self._pages.facts(),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._note()


def _covers(limit: int | None, earlier: int | None) -> bool:
    """Whether what was within the limit `earlier` is within `limit`."""
    if limit is None:
        return True
    return earlier is not None and limit >= earlier * _SAME_LIMIT


def _gradient_bytes(run: TrainRun) -> int:
    return sum(p.numel() * p.element_size() for p in run.parameters.values())


def _to_come_bytes(run: TrainRun, pages: PageBudget) -> int:
    """Gradients beside the next forward, and the optimizer's state that is not there yet."""
    gradients = _gradient_bytes(run)
    if pages.gives_way:
        return gradients + pages.least_bytes
    if has_state(run.optimizer):
        return gradients
    return gradients + pages.most_bytes
