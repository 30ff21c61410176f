"""Was it true: a plan beside what the run measured, by component, with the error.

    {"method", "num_rows", "length", "num_targets", "overheads", "rate",
     "components": [{"name", "planned_bytes", "measured_bytes"}],
     "peak_at", "planned_bytes", "measured_bytes", "error",
     "planned_tokens_per_second", "measured_tokens_per_second", "time_error"}

Errors are planned over measured, less one: below zero the plan promised too little. Measured is a
step of training, on a processor the resident set; loading and evaluation are not in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ince.plan.calibration import RunFact
from ince.plan.duration import Rate, TimePlan, plan_time
from ince.plan.memory import MemoryPlan
from ince.plan.setup import Setup
from ince.plan.shape import Shape

__all__ = ["Measured", "RunPlan"]

_WEIGHTS = ("codes", "scales", "linear", "expanded", "embedding", "head", "norms", "master")
_ADDED = ("fragmentation", "first_use")
_NOT_OF_A_STEP = (*_WEIGHTS, "adapters", "average", "framework")


@dataclass(frozen=True)
class Measured:
    """What a run found out.

    Attributes:
        weight_bytes: of the base as it is held.
        adapter_bytes: of what learns beside it.
        held_bytes: before the first step, all in all.
        peak_bytes: of the worst step.
        tokens_per_second: of all steps.
    """

    weight_bytes: int
    adapter_bytes: int
    held_bytes: int
    peak_bytes: int
    tokens_per_second: float


@dataclass(frozen=True)
class RunPlan:
    """The plan of one run, made before its first step."""

    shape: Shape
    setup: Setup
    memory: MemoryPlan
    time: TimePlan

    def to_dict(self) -> dict[str, Any]:
        """For the record, before anything is measured."""
        peak = self.memory.peak
        return {
            "method": self.setup.method,
            "num_rows": self.setup.num_rows,
            "length": self.setup.length,
            "num_targets": self.setup.num_learnt,
            "overheads": self.memory.overheads.source,
            "rate": self.time.rate.source,
            "parts": dict(peak.parts),
            "peak_at": peak.name,
            "planned_bytes": peak.total,
            "planned_tokens_per_second": self.time.tokens_per_second,
        }

    def beside(self, measured: Measured) -> dict[str, Any]:
        """For the record, with what was measured."""
        parts = self.memory.peak.parts
        weights, adapters = _sum(parts, _WEIGHTS), _sum(parts, ("adapters", "average"))
        framework = parts.get("framework", 0)
        moving = sum(parts.values()) - weights - adapters - framework
        rest = measured.held_bytes - measured.weight_bytes - measured.adapter_bytes
        components = (
            ("weights", weights, measured.weight_bytes),
            ("adapters", adapters, measured.adapter_bytes),
            ("framework, tokenizer and data", framework, rest),
            ("a step: activations, gradients, moments, buffers", moving, _moved(measured)),
        )
        speed = measured.tokens_per_second
        return self.to_dict() | {
            "components": [
                {"name": name, "planned_bytes": planned, "measured_bytes": found}
                for name, planned, found in components
            ],
            "measured_bytes": measured.peak_bytes,
            "error": self.memory.peak.total / measured.peak_bytes - 1,
            "measured_tokens_per_second": speed,
            # Of seconds: a plan that promises twice the speed promises half the time.
            "time_error": speed / self.time.tokens_per_second - 1,
        }

    def _tensors(self) -> int:
        """What the allocator's share was taken of."""
        parts = self.memory.peak.parts
        return sum(n for name, n in parts.items() if name not in (*_NOT_OF_A_STEP, *_ADDED))

    def _fixed(self) -> int:
        """What was added for a step beside tensors and that share."""
        overheads = self.memory.overheads
        parts = self.memory.peak.parts
        share = round(self._tensors() * overheads.fragmentation)
        return _sum(parts, _ADDED) - share

    def fact(self, measured: Measured, rate: Rate) -> RunFact:
        """What the next plan learns.

        Args:
            measured: of this run.
            rate: of the device, as it is known now; its correction is left out.
        """
        parts = self.memory.peak.parts
        held = _sum(parts, _WEIGHTS) + _sum(parts, ("adapters", "average"))
        planned = plan_time(self.shape, self.setup, rate).tokens_per_second * rate.correction
        return RunFact(
            held_bytes=held,
            measured_held_bytes=measured.held_bytes,
            moving_bytes=self._tensors(),
            fixed_bytes=self._fixed(),
            measured_moving_bytes=_moved(measured),
            seconds=1 / planned,
            measured_seconds=1 / measured.tokens_per_second,
        )


def _sum(parts: Mapping[str, int], names: tuple[str, ...]) -> int:
    return sum(parts.get(name, 0) for name in names)


def _moved(measured: Measured) -> int:
    return measured.peak_bytes - measured.held_bytes
