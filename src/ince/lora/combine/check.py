"""What a combination of adapters is, and whether it can be made at all.

The kinds, their names, options and defaults are those of PEFT's `add_weighted_adapter`. They
are judged here once, before any layer is computed, so that a mistake leaves no half-made
adapter. Options that a kind has no use for are checked and have no effect, as in PEFT.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ince.errors import AdapterError, ConfigError, Problem, did_you_mean
from ince.lora.combine.arithmetic import Pruning

__all__ = ["KINDS", "Combination", "Kind", "check_combination"]

_MAJORITY_METHODS = ("total", "frequency")
_DRIVERS = ("gesvd", "gesvdj", "gesvda")


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to combine, as the steps that it is made of."""

    on: Literal["rank", "factors", "delta"]
    """Where the sum is taken: by stacking ranks, on A and on B, or on the dense update."""
    pruning: Pruning | None = None
    vote: bool = False


KINDS: Mapping[str, Kind] = {
    "svd": Kind("delta"),
    "linear": Kind("factors"),
    "cat": Kind("rank"),
    "ties": Kind("factors", "magnitude", vote=True),
    "ties_svd": Kind("delta", "magnitude", vote=True),
    "dare_ties": Kind("factors", "random", vote=True),
    "dare_linear": Kind("factors", "random"),
    "dare_ties_svd": Kind("delta", "random", vote=True),
    "dare_linear_svd": Kind("delta", "random"),
    "magnitude_prune": Kind("factors", "magnitude"),
    "magnitude_prune_svd": Kind("delta", "magnitude"),
}
"""By PEFT's names. `cat` and `svd` (of enough rank) give the weighted sum of the updates;
every kind on factors mixes A's with A's and B's with B's, which is not that sum."""


@dataclass(frozen=True, slots=True)
class Combination:
    """A combination that was judged possible: the same for all layers."""

    kind: str
    """A key of `KINDS`; "linear" for a single adapter, whatever was asked for."""
    rank: int
    """Rank of the new adapter. Its scale is 1: alpha equal to the rank, without rsLoRA."""
    density: float | None = None
    majority_sign_method: str = "total"
    svd_clamp: float | None = None
    svd_driver: str | None = None


def check_combination(
    kind: str,
    adapters: Sequence[str],
    weights: Sequence[float],
    ranks: Mapping[str, int],
    *,
    svd_rank: int | None = None,
    svd_clamp: float | None = None,
    svd_full_matrices: bool = True,
    svd_driver: str | None = None,
    density: float | None = None,
    majority_sign_method: str = "total",
) -> Combination:
    """Judge what is asked for and say what will be made.

    Args:
        kind: a key of `KINDS`. A single adapter is always combined by "linear".
        adapters: names, each once; in this order DARE draws its masks.
        weights: one finite number for each of them.
        ranks: by name, of all adapters that there are; for an adapter whose layers differ in
            rank, the largest.
        svd_rank: rank of the result of ``svd`` and ``…_svd``; None is the largest of `ranks`.
        svd_clamp: quantile, in [0, 1], to which the entries of the split factors are clamped.
        svd_full_matrices: PEFT's switch. The vectors that it would add are cut off again, so
            that it changes no result.
        svd_driver: cuSOLVER's method, used on CUDA alone.
        density: share of entries that pruning keeps; needed by ties, dare and magnitude_prune.
        majority_sign_method: "total" or "frequency", for ties.

    Raises:
        ConfigError: unknown kind or option value; density missing; weights that do not match.
            All such mistakes are in its problems.
        AdapterError: no adapter, an unknown or a repeated one; or ranks that differ where A's
            are added to A's.
    """
    _check_names(adapters, ranks)
    # PEFT's rule: one adapter has nothing to vote about and nothing to be decomposed.
    effective = "linear" if len(adapters) == 1 and kind in KINDS else kind
    problems = [
        *_kind_problems(kind),
        *_weight_problems(adapters, weights),
        *_density_problems(effective, density),
        *_svd_problems(svd_rank, svd_clamp, svd_full_matrices, svd_driver),
    ]
    if majority_sign_method not in _MAJORITY_METHODS:
        problems.append(_unknown("majority_sign_method", majority_sign_method, _MAJORITY_METHODS))
    if problems:
        raise ConfigError("the adapters cannot be combined like this", problems=problems)
    used = [ranks[name] for name in adapters]
    return Combination(
        effective,
        _new_rank(effective, adapters, used, svd_rank),
        None if density is None else float(density),
        majority_sign_method,
        None if svd_clamp is None else float(svd_clamp),
        svd_driver,
    )


def _check_names(adapters: Sequence[str], ranks: Mapping[str, int]) -> None:
    if isinstance(adapters, str) or not adapters:
        raise AdapterError(
            "there are no adapters to combine", got=adapters, expected="a list of adapter names"
        )
    for name, count in Counter(adapters).items():
        if name not in ranks:
            raise AdapterError(
                "there is no adapter of this name",
                got=name,
                expected=", ".join(ranks) or "no adapter is loaded",
                do=did_you_mean(name, ranks),
            )
        if count > 1:
            raise AdapterError(
                "an adapter is named more than once",
                got=list(adapters),
                do=f"name {name!r} once, with the sum of its weights",
            )
        if not _is_whole(ranks[name]) or ranks[name] < 1:
            raise AdapterError(
                "an adapter has no rank", where=name, got=ranks[name], expected="at least 1"
            )


def _new_rank(kind: str, adapters: Sequence[str], ranks: list[int], svd_rank: int | None) -> int:
    on = KINDS[kind].on
    if on == "rank":
        return sum(ranks)
    if on == "delta":
        return svd_rank or max(ranks)
    if len(set(ranks)) > 1:
        raise AdapterError(
            f"{kind!r} adds factors entry by entry, and the adapters have different ranks",
            got=", ".join(f"{name}: {r}" for name, r in zip(adapters, ranks, strict=True)),
            expected="one rank",
            do="use 'svd' or 'cat', or a kind that ends in '_svd'",
        )
    return ranks[0]


def _kind_problems(kind: str) -> list[Problem]:
    return [] if kind in KINDS else [_unknown("combination_type", kind, tuple(KINDS))]


def _weight_problems(adapters: Sequence[str], weights: Sequence[float]) -> list[Problem]:
    if len(weights) != len(adapters):
        counts = f"{len(weights)} weights for {len(adapters)} adapters"
        return [Problem("weights", counts, "give one for each")]
    return [
        Problem("weights", f"{weight!r} of {name!r} is not a finite number")
        for name, weight in zip(adapters, weights, strict=True)
        if not _is_number(weight)
    ]


def _density_problems(kind: str, density: float | None) -> list[Problem]:
    pruning = KINDS[kind].pruning if kind in KINDS else None
    if density is None:
        if pruning is None:
            return []
        return [Problem("density", f"{kind!r} needs one", "the share of entries to keep, as 0.5")]
    if not _is_number(density) or not 0 <= density <= 1:
        return [Problem("density", f"{density!r} is not in [0, 1]")]
    if density == 0 and pruning == "random":
        # What is kept is divided by the density.
        return [Problem("density", f"0 leaves {kind!r} nothing to scale up", "give more than 0")]
    return []


def _svd_problems(
    rank: int | None, clamp: float | None, full_matrices: bool, driver: str | None
) -> list[Problem]:
    problems: list[Problem] = []
    if rank is not None and (not _is_whole(rank) or rank < 1):
        problems.append(Problem("svd_rank", f"{rank!r} is not a whole number of at least 1"))
    if clamp is not None and (not _is_number(clamp) or not 0 <= clamp <= 1):
        problems.append(Problem("svd_clamp", f"{clamp!r} is not a quantile in [0, 1]"))
    if not isinstance(full_matrices, bool):
        problems.append(Problem("svd_full_matrices", f"{full_matrices!r} is not true or false"))
    if driver is not None and driver not in _DRIVERS:
        problems.append(_unknown("svd_driver", driver, _DRIVERS))
    return problems


def _unknown(key: str, got: object, known: tuple[str, ...]) -> Problem:
    suggestion = did_you_mean(str(got), known) or f"one of {', '.join(known)}"
    return Problem(key, f"{got!r} is not known", suggestion)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
