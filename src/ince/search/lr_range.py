"""The arithmetic of a learning-rate range test: rates that grow, losses smoothed, a suggestion.

Each step has a rate a constant factor above that of the step before. While it is too low the
loss stays where it is, then it falls, and when the rate is too high it rises. Losses of single
batches scatter, so what is read is their exponential moving mean, corrected for its start at
zero as in Adam.

Source: Smith, arXiv:1506.01186.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["RangePoint", "RangeTest", "Suggestion", "suggest"]

# Weight of what came before in the moving mean: that of about the last eight steps.
_SMOOTHING = 0.88
# Fewer points than this say nothing about where a curve bends.
_FEWEST_POINTS = 8


@dataclass(frozen=True)
class RangePoint:
    """One step: its number from 1, its rate, its loss, and the smoothed loss up to it."""

    step: int
    lr: float
    loss: float
    smoothed: float


class RangeTest:
    """Rates from `low` to `high` over `num_steps`, and the losses that they gave."""

    def __init__(self, *, low: float, high: float, num_steps: int, stop_factor: float) -> None:
        """A test without losses yet.

        Args:
            low, high: rates of the first and the last step.
            num_steps: two at least.
            stop_factor: the loss has diverged when it is so many times the best one.
        """
        self.low, self.high, self.num_steps = low, high, num_steps
        self.stop_factor = stop_factor
        self.points: list[RangePoint] = []
        self._mean = 0.0
        self.diverged = False

    def rate(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        return self.low * (self.high / self.low) ** (step / (self.num_steps - 1))

    def add(self, loss: float) -> None:
        """Take the loss of the next step; sets `diverged` when it is not finite or far too high."""
        step = len(self.points)
        if not math.isfinite(loss):
            self.diverged = True
            return
        self._mean = _SMOOTHING * self._mean + (1 - _SMOOTHING) * loss
        smoothed = self._mean / (1 - _SMOOTHING ** (step + 1))
        self.points.append(RangePoint(step + 1, self.rate(step), loss, smoothed))
        best = min(point.smoothed for point in self.points)
        if step + 1 >= _FEWEST_POINTS and smoothed > self.stop_factor * best:
            self.diverged = True

    @property
    def is_over(self) -> bool:
        """All steps are done, or the loss has diverged."""
        return self.diverged or len(self.points) >= self.num_steps


@dataclass(frozen=True)
class Suggestion:
    """What the curve says.

    Attributes:
        lr: the rate to use.
        steepest: the rate at which the smoothed loss falls fastest.
        minimum: the rate at which it is lowest, the first of them where the curve is level there.
        below_minimum: a tenth of that.
        remark: what to doubt, or empty.
    """

    lr: float
    steepest: float
    minimum: float
    below_minimum: float
    remark: str = ""


# The loss must fall by this share of its first value for its fall to mean anything.
_LEAST_FALL = 0.03

# Losses within this share of the whole fall are as good as the lowest. Where a curve stays level
# before it rises, noise would otherwise choose among rates that lie far apart.
_LEVEL = 0.03


def suggest(points: Sequence[RangePoint], *, is_whole: bool) -> Suggestion | str:
    """The suggestion, or in words why there is none.

    Args:
        points: of a `RangeTest`.
        is_whole: the test ended by itself; otherwise its minimum may be still to come.
    """
    if len(points) < _FEWEST_POINTS:
        return f"{len(points)} steps are too few to see a curve"
    smoothed = [point.smoothed for point in points]
    lowest = min(range(len(points)), key=smoothed.__getitem__)
    before = max(smoothed[: lowest + 1])
    if before - smoothed[lowest] < _LEAST_FALL * before:
        return (
            f"the loss did not fall by {_LEAST_FALL:.0%} at any rate: begin lower, give it more "
            "steps, or look at the data"
        )
    still_falls = lowest == len(points) - 1
    enough = smoothed[lowest] + _LEVEL * (before - smoothed[lowest])
    if not still_falls:
        highest = smoothed.index(before)
        lowest = next(i for i in range(highest, lowest + 1) if smoothed[i] <= enough)
    steepest = _steepest(points, lowest)
    minimum = points[lowest].lr
    remark = ""
    if still_falls:
        remark = (
            "the loss was still falling at the highest rate: a range that ends higher says more"
            if is_whole
            else "the loss was still falling when the test was stopped"
        )
    return Suggestion(minimum / 10, points[steepest].lr, minimum, minimum / 10, remark)


def _steepest(points: Sequence[RangePoint], lowest: int) -> int:
    """Where the smoothed loss falls fastest by the logarithm of the rate, up to its minimum.

    Slopes are those of lines fitted over a fifth of the points: between neighbors there is
    mostly noise, and most of all where the mean has just begun.
    """
    reach = max(2, len(points) // 10)
    first = min(_FEWEST_POINTS - 1, lowest)

    def slope(i: int) -> float:
        near = points[max(0, i - reach) : i + reach + 1]
        xs = [math.log(point.lr) for point in near]
        ys = [point.smoothed for point in near]
        middle = math.fsum(xs) / len(xs)
        spread = math.fsum((x - middle) ** 2 for x in xs)
        return math.fsum((x - middle) * y for x, y in zip(xs, ys, strict=True)) / spread

    return min(range(first, lowest + 1), key=slope)
