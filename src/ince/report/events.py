"""What a log notes beside its curves: steps passed over, spikes of the loss, smaller forwards.

A spike or a step that was not taken is a reason to look at the rows behind it, so each is
marked on the curve and stands in a table with its rows.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ince.report.facts import evenly
from ince.report.loose import number, sequence, text

__all__ = ["SKIPPED", "SPIKE", "Event", "EventTable", "event_of", "event_table"]

SKIPPED = "skipped"
SPIKE = "spike"

_NUM_SHOWN = 20
_MAX_SOURCES = 8
_MAX_CHARACTERS = 160
# One event each, and many: "3 skipped steps, 1 spike".
_NAMES = {
    SKIPPED: ("skipped step", "skipped steps"),
    SPIKE: ("loss spike", "loss spikes"),
    "micro-batch cut": ("smaller micro-batch", "smaller micro-batches"),
}


@dataclass(frozen=True)
class Event:
    """One line of the log that tells of an event.

    Attributes:
        step: at which it happened.
        kind: as it stands in the log.
        what: happened, in words.
        sources: rows concerned.
        value: loss of a spike, else None.
    """

    step: float
    kind: str
    what: str
    sources: Sequence[str] = ()
    value: float | None = None


@dataclass(frozen=True)
class EventTable:
    """Events as cells (step, kind, what, rows), and how many there were."""

    rows: Sequence[tuple[str, str, str, str]]
    counts: str
    num_left_out: int


def event_of(step: float, line: Mapping[str, object]) -> Event | None:
    """The event that a line of the log tells of, if it does."""
    kind = text(line.get("event"), limit=40)
    if kind is None:
        return None
    what = text(line.get("what"), limit=_MAX_CHARACTERS) or ""
    loss, limit = number(line.get("spike_loss")), number(line.get("limit"))
    if kind == SPIKE and loss is not None:
        what = f"loss {loss:.4g}" + ("" if limit is None else f", above {limit:.4g}")
    if (tokens := number(line.get("micro_batch_tokens"))) is not None:
        what += f"; forwards of at most {tokens:,.0f} tokens from here on"
    found = [text(source, limit=_MAX_CHARACTERS) for source in sequence(line.get("sources"))]
    sources = tuple(source for source in found[:_MAX_SOURCES] if source is not None)
    return Event(step, kind, what.removeprefix("; "), sources, loss if kind == SPIKE else None)


def event_table(events: Sequence[Event], num_more: int = 0) -> EventTable:
    """The events as a table of some of them, taken evenly.

    Args:
        events: in their order.
        num_more: that were not kept.
    """
    shown = evenly(list(events), _NUM_SHOWN)
    counts = Counter(event.kind for event in events)
    words = [
        f"{number_of:,} {_NAMES.get(kind, (kind, kind))[number_of != 1]}"
        for kind, number_of in counts.most_common(6)
    ]
    if num_more:
        words.append(f"{num_more:,} more in log.jsonl")
    return EventTable(
        rows=[(f"{e.step:,.0f}", e.kind, e.what, ", ".join(e.sources)) for e in shown],
        counts=", ".join(words),
        num_left_out=len(events) + num_more - len(shown),
    )
