"""Was the plan true: the section ``plan`` of a run record as a table's rows and a sentence."""

from collections.abc import Mapping

from ince.report.facts import in_bytes
from ince.report.loose import mapping, number, sequence, text

__all__ = ["plan_rows", "plan_sentence"]


def plan_rows(record: Mapping[str, object]) -> list[tuple[str, str, str, str]]:
    """(what, planned, measured, error) of each component and of the peak; none without both."""
    plan = mapping(record.get("plan"))
    rows = [
        _row(
            text(each.get("name"), limit=80) or "",
            each.get("planned_bytes"),
            each.get("measured_bytes"),
        )
        for each in map(mapping, sequence(plan.get("components"))[:20])
    ]
    if rows:
        rows.append(_row("peak of a step", plan.get("planned_bytes"), plan.get("measured_bytes")))
        speeds = [
            number(plan.get(f"{which}_tokens_per_second")) for which in ("planned", "measured")
        ]
        planned, measured = speeds
        if planned and measured:
            rows.append(
                (
                    "tokens in a second",
                    f"{planned:,.0f}",
                    f"{measured:,.0f}",
                    _error(planned, measured),
                )
            )
    return rows


def _row(name: str, planned: object, measured: object) -> tuple[str, str, str, str]:
    first, second = number(planned), number(measured)
    error = "" if first is None or not second or second <= 0 else _error(first, second)
    return name, in_bytes(planned) or "0 B", in_bytes(measured) or "0 B", error


def _error(planned: float, measured: float) -> str:
    return f"{planned / measured - 1:+.1%}"


def plan_sentence(record: Mapping[str, object]) -> str:
    """What the plan rested on."""
    plan = mapping(record.get("plan"))
    parts = [
        f"Overheads {text(plan.get('overheads'), limit=200)}." if plan.get("overheads") else "",
        f"Speed {text(plan.get('rate'), limit=200)}." if plan.get("rate") else "",
    ]
    return " ".join(part for part in parts if part)
