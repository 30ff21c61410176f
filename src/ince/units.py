"""Quantities as people write and read them: bytes, seconds, counts.

Binary units carry the i (1 GiB = 2**30 bytes), decimal units do not (1 GB = 10**9 bytes).
"""

import re
from decimal import Decimal

from ince.errors import InputError, did_you_mean

__all__ = ["format_bytes", "format_count", "format_seconds", "parse_bytes", "parse_count"]

_COUNT_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}

_BYTE_UNITS = {
    "": 1,
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}


def parse_bytes(text: str | int) -> int:
    """Bytes from ``"3GiB"``, ``"512 MB"`` or a plain number.

    Raises:
        InputError: not a number with a known unit, or negative.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        amount, unit = Decimal(text), ""
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
        if match is None:
            raise InputError(
                "not an amount of memory", got=text, expected="a number and a unit, such as 3GiB"
            )
        amount, unit = Decimal(match[1]), match[2]
    if unit not in _BYTE_UNITS:
        by_lower = {name.lower(): name for name in _BYTE_UNITS}
        if unit.lower() not in by_lower:
            raise InputError(
                f"unknown unit of memory {unit!r}",
                got=text,
                expected="B, kB, MB, GB, TB, KiB, MiB, GiB or TiB",
                do=did_you_mean(unit, _BYTE_UNITS),
            )
        unit = by_lower[unit.lower()]
    if amount < 0:
        raise InputError("an amount of memory cannot be negative", got=text)
    return int(amount * _BYTE_UNITS[unit])


def parse_count(text: str | int) -> int:
    """A count from ``"10M"``, ``"1.5B"``, ``"20,000"`` or a plain number.

    Raises:
        InputError: not a number with k, M, B or T behind it.
    """
    match = re.fullmatch(r"\s*(\d[\d,_]*(?:\.\d+)?)\s*([A-Za-z]?)\s*", str(text), re.ASCII)
    if match is None or match[2].lower() not in _COUNT_UNITS:
        raise InputError(
            "not a count", got=text, expected="a number, with k, M, B or T behind it, such as 10M"
        )
    amount = Decimal(match[1].replace(",", "").replace("_", ""))
    return int(amount * _COUNT_UNITS[match[2].lower()])


def _three_digits(size: float) -> str:
    """Three significant digits of a number between 1 and 1024: 1.50, 12.3, 1020."""
    for decimals, limit in ((2, 9.995), (1, 99.95)):
        if abs(size) < limit:
            return f"{size:.{decimals}f}"
    return f"{size:.0f}"


def format_bytes(num_bytes: float) -> str:
    """``1536`` → ``"1.50 KiB"``: binary units, three significant digits."""
    size = float(num_bytes)
    if abs(size) < 1024:
        return f"{size:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if abs(size) < 1023.5:
            return f"{_three_digits(size)} {unit}"
    size /= 1024
    return f"{_three_digits(size)} TiB"


def format_seconds(seconds: float) -> str:
    """``75.2`` → ``"1 min 15 s"``; under a minute one decimal is kept."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def format_count(number: float) -> str:
    """``4884480`` → ``"4.88M"``; below 10,000 the whole number with separators."""
    if abs(number) < 9_999.5:
        return f"{number:,.0f}"
    size = float(number)
    for unit in ("k", "M", "B"):
        size /= 1000
        if abs(size) < 999.5:
            return f"{_three_digits(size)}{unit}"
    return f"{_three_digits(size / 1000)}T"
