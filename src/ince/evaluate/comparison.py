"""One metric of two models on the same rows: the entry that ``eval.json`` holds."""

from collections.abc import Mapping, Sequence

from ince.errors import InputError
from ince.evaluate.bootstrap import paired_bootstrap

__all__ = ["CONFIDENCE", "compare", "evaluation"]

CONFIDENCE = 0.95


def _mean(values: Sequence[float], weights: Sequence[float] | None) -> float:
    if weights is None:
        return sum(values) / len(values)
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def compare(
    name: str,
    *,
    label: str,
    group: str,
    unit: str,
    higher_is_better: bool,
    base: Sequence[float],
    tuned: Sequence[float],
    echo: Sequence[float] | None = None,
    weights: Sequence[float] | None = None,
    seed: int = 0,
) -> dict[str, object]:
    """Means of both models and the paired bootstrap interval of their difference.

    Args:
        name: key for programs. label: for people.
        group: metrics of one task or text are shown together.
        unit: ``share`` (shown as a percentage), ``chrF``, ``nats``, ``bits/byte``.
        higher_is_better: which way is up.
        base, tuned: a value for each row, in the same order.
        echo: what giving the question back would score, row by row.
        weights: of the rows in every mean.
        seed: of the resampling.

    Raises:
        InputError: there are no rows, or different numbers of them.
    """
    if echo is not None and len(echo) != len(base):
        raise InputError("the echo has other rows", got=len(echo), expected=len(base))
    interval = paired_bootstrap(base, tuned, weights=weights, seed=seed, confidence=CONFIDENCE)
    return {
        "name": name,
        "label": label,
        "group": group,
        "unit": unit,
        "higher_is_better": higher_is_better,
        "base": _mean(base, weights),
        "tuned": _mean(tuned, weights),
        "echo": None if echo is None else _mean(echo, weights),
        "difference": interval.difference,
        "low": interval.low,
        "high": interval.high,
        "num_rows": len(base),
    }


def evaluation(metrics: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """The content of ``eval.json``."""
    return {"confidence": CONFIDENCE, "metrics": [dict(metric) for metric in metrics]}
