"""Numbers of an optimizer, looked at before they are used."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor

from ince.errors import ConfigError, Problem

__all__ = ["check_options"]


def check_options(options: Mapping[str, Any], *, of: str) -> None:
    """See that those of ``lr``, ``betas``, ``eps`` and ``weight_decay`` that are there can be.

    Args:
        options: defaults of an optimizer, or a group of it.
        of: the optimizer's name.

    Raises:
        ConfigError: with all that cannot.
    """
    problems = [
        _problem(name, options[name], "a number of at least 0")
        for name in ("lr", "eps", "weight_decay")
        if name in options and not _is_number(options[name])
    ]
    if "betas" in options and not _are_betas(options["betas"]):
        problems.append(_problem("betas", options["betas"], "two numbers from 0 to below 1"))
    if options.get("amsgrad", False):
        problems.append(Problem("amsgrad", "is not supported", "leave it out"))
    if problems:
        raise ConfigError(f"{of} cannot train like this", problems=problems)


def _problem(name: str, got: object, expected: str) -> Problem:
    return Problem(name, f"expected {expected}, got {got!r}")


def _is_number(value: object, below: float = math.inf) -> bool:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            return False
        value = value.item()
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < below


def _are_betas(value: object) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return False
    betas = cast("Sequence[object]", value)
    return len(betas) == 2 and all(_is_number(beta, below=1.0) for beta in betas)
