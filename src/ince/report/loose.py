"""Values out of files that may be cut off, older, newer or hostile, read without failing.

Each reader returns the value in the one form asked for, or None (or empty) when it is not
that. A report with a gap is worth more than no report. Escaping for HTML is not done here:
the template escapes everything.
"""

import math
import re
from collections.abc import Mapping, Sequence

__all__ = ["boolean", "mapping", "number", "sequence", "shown", "shown_value", "text", "whole"]

_MAX_CHARACTERS = 2_000

# Bidirectional overrides and isolates, and the like, can make text read as what it is not.
_INVISIBLE = re.compile(
    "[\u061c\u200b\u200e\u200f\u202a-\u202e\u2028\u2029\u2060-\u206f\ufeff\ufff9-\ufffb]"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_OTHER_CONTROL = re.compile("[\x7f-\x9f]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def mapping(value: object) -> Mapping[str, object]:
    """`value` when it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def sequence(value: object) -> Sequence[object]:
    """`value` when it is a JSON array, else an empty one."""
    return value if isinstance(value, list) else []


def number(value: object) -> float | None:
    """`value` as a finite float; NaN, infinity, booleans and strings are None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def whole(value: object) -> int | None:
    """`value` as an integer when it is a finite, whole number."""
    found = number(value)
    return int(found) if found is not None and found == int(found) else None


def boolean(value: object) -> bool | None:
    """`value` when it is true or false, else None."""
    return value if isinstance(value, bool) else None


def shown(value: str, *, limit: int = _MAX_CHARACTERS) -> str:
    """`value` safe to put before a reader: cut at `limit`, every character visible.

    Control characters become their pictures (␀ … ␟), invisible and direction-changing
    ones their code points (⟨U+202E⟩), unpaired surrogates U+FFFD. Line breaks and tabs stay.
    """
    num_left_out = len(value) - limit
    kept = value[:limit].replace("\r\n", "\n").replace("\r", "\n")
    kept = _CONTROL.sub(lambda match: chr(0x2400 + ord(match[0])), kept)
    kept = _OTHER_CONTROL.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", kept)
    kept = _INVISIBLE.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", kept)
    kept = _SURROGATE.sub("\ufffd", kept)
    if num_left_out > 0:
        kept += f"… ({num_left_out:,} characters more)"
    return kept


def text(value: object, *, limit: int = _MAX_CHARACTERS) -> str | None:
    """`value` as a `shown` string, or None when it is not a string or is blank."""
    if not isinstance(value, str) or not value.strip():
        return None
    return shown(value, limit=limit)


def shown_value(value: object, *, limit: int = 400) -> str:
    """Any JSON value as a person writes it: ``true``, ``none``, ``2e-4``, ``a, b, c``."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return shown(value, limit=limit) if value else "“”"
    if isinstance(value, float):
        return f"{value:g}" if math.isfinite(value) else "not a number"
    if isinstance(value, int):
        # Python refuses to print integers of more than 4,300 digits.
        return str(value) if value.bit_length() < 1_000 else "a very large number"
    if isinstance(value, list):
        parts = [shown_value(item, limit=limit) for item in value[:40]]
        parts += ["…"] if len(value) > 40 else []
        return shown(", ".join(parts), limit=limit) if parts else "none"
    if isinstance(value, dict):
        pairs = [f"{key}: {shown_value(item, limit=limit)}" for key, item in value.items()]
        return shown(", ".join(pairs), limit=limit) if pairs else "none"
    return shown(str(value), limit=limit)
