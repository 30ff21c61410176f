"""Is the difference between two models real, or of these rows only?

Both models answered the same rows, so rows are drawn again in pairs: what makes a row
hard for both cancels, and the interval is as narrow as the comparison allows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ince.errors import InputError

__all__ = ["Interval", "paired_bootstrap"]

_CELLS_AT_ONCE = 4_000_000  # of the table of drawn rows: 32 MB of indices


@dataclass(frozen=True)
class Interval:
    """A difference, tuned minus base, and where it lies with the confidence asked for."""

    difference: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the two differ beyond chance at this confidence."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    base: Sequence[float],
    tuned: Sequence[float],
    *,
    weights: Sequence[float] | None = None,
    num_resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Percentile interval of the difference of two (weighted) means over the same rows.

    Args:
        base: a score for each row, of the model before.
        tuned: the scores of the same rows, of the model after.
        weights: of the rows in the mean: targets of a loss, bytes of a text, words that
            lost letters. Equal when None.
        num_resamples: how often the rows are drawn.
        seed: fixes the interval.
        confidence: between 0 and 1.

    Raises:
        InputError: no rows, or different numbers of them, values out of range, or a score
            that is not finite.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", chapter 13.
    """
    rows = [len(base), len(tuned), *([] if weights is None else [len(weights)])]
    if len(set(rows)) != 1 or not rows[0]:
        raise InputError(
            "a paired comparison needs the same rows of both, and at least one",
            got=f"{len(base)} rows before, {len(tuned)} after"
            + ("" if weights is None else f", {len(weights)} weights"),
        )
    if not 0 < confidence < 1 or num_resamples < 1:
        raise InputError(
            "confidence or number of resamples is out of range",
            got=f"confidence={confidence}, num_resamples={num_resamples}",
            expected="a confidence between 0 and 1, and at least one resample",
        )
    weight = np.ones(rows[0]) if weights is None else np.asarray(weights, dtype=float)
    if (weight < 0).any() or weight.sum() <= 0:
        raise InputError("weights must not be negative, nor all be zero")
    gain = (np.asarray(tuned, dtype=float) - np.asarray(base, dtype=float)) * weight
    if not np.isfinite(gain).all():
        raise InputError(
            "a score that is not a number cannot be compared",
            where=f"rows {', '.join(map(str, np.flatnonzero(~np.isfinite(gain))[:5]))}",
        )
    generator = np.random.default_rng(seed)
    differences: list[np.ndarray] = []
    num_left = num_resamples
    while num_left:
        num_drawn = min(num_left, max(1, _CELLS_AT_ONCE // rows[0]))
        drawn = generator.integers(0, rows[0], size=(num_drawn, rows[0]))
        total = weight[drawn].sum(axis=1)
        # A draw of nothing but weightless rows says nothing about the difference.
        known = total > 0
        differences.append(gain[drawn].sum(axis=1)[known] / total[known])
        num_left -= num_drawn
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(np.concatenate(differences), [tail, 100 - tail])
    return Interval(float(gain.sum() / weight.sum()), float(low), float(high))
