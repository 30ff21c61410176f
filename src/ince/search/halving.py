"""Successive halving: all candidates train a little, the better ones on, the best to the end.

A rung is a share of a candidate's own training. Every rung is η times as long as the one
before it and holds the better 1/η of its candidates. A candidate is cut off at a rung, not
trained on a shorter plan: its learning rate there is that of a run of full length.

Source: Jamieson and Talwalkar, arXiv:1502.07943; the number of rungs as in Hyperband,
arXiv:1603.06560.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

__all__ = ["Rung", "cost", "plan_rungs", "survivors"]


@dataclass(frozen=True)
class Rung:
    """How far candidates train before they are compared, and how many get there."""

    share: Fraction
    num_candidates: int

    def steps(self, num_steps: int) -> int:
        """The step at which a candidate of `num_steps` steps reaches this rung."""
        return math.ceil(num_steps * self.share)


def _largest_power(eta: int, limit: float) -> int:
    power = 0
    while eta ** (power + 1) <= limit:
        power += 1
    return power


def plan_rungs(num_candidates: int, *, eta: int, shortest_steps: int, min_steps: int) -> list[Rung]:
    """The rungs of a sweep, from the shortest to the whole training.

    There are as many as candidates can be divided by η, one division at least; fewer where
    the first rung would be shorter than `min_steps`, and then more than one candidate is
    trained to the end.

    Args:
        num_candidates: at least one.
        eta: 1/η of the candidates go on, at least one; η is 2 or more.
        shortest_steps: of the candidate that trains for the fewest.
        min_steps: of the first rung.
    """
    by_number = max(1, _largest_power(eta, num_candidates)) if num_candidates > 1 else 0
    by_length = _largest_power(eta, shortest_steps / min_steps)
    num_cuts = min(by_number, by_length)
    return [
        Rung(Fraction(1, eta ** (num_cuts - cut)), max(1, num_candidates // eta**cut))
        for cut in range(num_cuts + 1)
    ]


def survivors(losses: dict[int, float], rung: Rung) -> list[int]:
    """The candidates that go on to `rung`, in their order: those of least loss, earlier ones first.

    Args:
        losses: at the rung before, by number of candidate; those that failed left out.
        rung: the one that they go on to.
    """
    best = sorted(losses, key=lambda number: (losses[number], number))
    return sorted(best[: rung.num_candidates])


def cost(rungs: Sequence[Rung]) -> float:
    """What the sweep trains, in trainings of full length, if none fails."""
    before = Fraction(0)
    total = Fraction(0)
    for rung in rungs:
        total += rung.num_candidates * (rung.share - before)
        before = rung.share
    return float(total)
