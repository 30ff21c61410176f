"""What a tenant's limits are called, and which values they may have."""

import math
from collections.abc import Mapping

from ince.errors import InputError, did_you_mean

__all__ = ["LIMITS", "check_limits"]

# name: the least that it may be; what is not here is no limit of a tenant
_COUNTS = {
    "requests_per_minute": 1,
    "tokens_per_minute": 1,
    "max_concurrent": 1,
    "max_adapters": 0,
    "max_bytes": 0,
}
_MOST = 2**53  # what every reader of JSON keeps exactly
_MAX_WEIGHT = 1e6
LIMITS = (*_COUNTS, "weight", "is_admin")


def check_limits(limits: Mapping[str, object]) -> None:
    """Refuse what is no limit, or cannot be its value.

    Raises:
        InputError: the first of them.
    """
    for name, value in limits.items():
        if name not in LIMITS:
            raise InputError(
                "a tenant has no such limit",
                got=name,
                expected=", ".join(LIMITS),
                do=did_you_mean(name, LIMITS),
            )
        expected = _refusal(name, value)
        if expected is not None:
            raise InputError(
                "this limit cannot have this value", where=name, got=value, expected=expected
            )


def _refusal(name: str, value: object) -> str | None:
    """What was expected, where `value` is not that."""
    if name == "is_admin":
        return None if isinstance(value, bool) else "true or false"
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if name == "weight":
        fits = 0 < number <= _MAX_WEIGHT
        return None if fits else f"a number above 0, at most {_MAX_WEIGHT:,.0f}"
    least = _COUNTS[name]
    if value is None or (isinstance(number, int) and least <= number <= _MOST):
        return None
    return f"a whole number, at least {least}; or none for no limit"
