"""Names with values, and quantities of unknown origin in the words of `ince.units`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from ince.report.loose import number, shown, shown_value, text, whole
from ince.units import format_bytes, format_count, format_seconds

__all__ = [
    "Fact",
    "evenly",
    "facts",
    "in_bytes",
    "in_count",
    "in_full",
    "in_percent",
    "in_seconds",
    "in_time",
]

_T = TypeVar("_T")


@dataclass(frozen=True)
class Fact:
    """A name and a value; `mono` for what is copied rather than read."""

    name: str
    value: str
    mono: bool = False


def facts(pairs: Iterable[tuple[str, object]], *, mono: Sequence[str] = ()) -> list[Fact]:
    """The pairs whose value is known."""
    return [
        Fact(shown(name, limit=80), shown_value(value), name in mono)
        for name, value in pairs
        if value is not None and value != "" and value != {} and value != []
    ]


def in_seconds(value: object) -> str | None:
    """A duration in words, or None when it is none."""
    found = number(value)
    return format_seconds(found) if found is not None and 0 <= found < 1e10 else None


def in_bytes(value: object) -> str | None:
    """An amount of memory in words, or None when it is none."""
    found = number(value)
    return format_bytes(found) if found is not None and found > 0 else None


def in_count(value: object) -> str | None:
    """A rounded count in words, or None when it is no number."""
    found = number(value)
    return format_count(found) if found is not None else None


def in_full(value: object) -> str | None:
    """A count to the last digit: tables of data are checked by adding them up."""
    found = whole(value)
    return f"{found:,}" if found is not None else None


def in_time(value: object) -> str | None:
    """``2026-03-01 14:05 UTC``, or the text as it is when it is no time."""
    found = text(value, limit=60)
    if found is None:
        return None
    try:
        moment = datetime.fromisoformat(found)
    except ValueError:
        return found
    if moment.tzinfo is None:
        return moment.strftime("%Y-%m-%d %H:%M")
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def in_percent(value: float) -> str:
    """A place or a width in a drawing."""
    return f"{value:.2f}%"


def evenly(items: Sequence[_T], at_most: int) -> list[_T]:
    """At most `at_most` of the items, first and last among them, evenly between."""
    if len(items) <= at_most:
        return list(items)
    places = {round(i * (len(items) - 1) / (at_most - 1)) for i in range(at_most)}
    return [items[i] for i in sorted(places)]
