"""A plan in a terminal: methods side by side, a bar of what the peak is of, and the way to fit.

80 columns are enough. The same order and colors of components everywhere.
"""

from collections.abc import Iterator, Mapping

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ince.plan import COMPONENTS, Moment, TimePlan
from ince.plan.overview import Overview
from ince.plan.solve import Solution
from ince.units import format_bytes, format_count, format_seconds

__all__ = ["PARTS_COLORS", "part_groups", "plan_lines"]

_BAR_WIDTH = 56
_METHOD_NAMES = {"full": "full", "lora": "LoRA", "qlora": "QLoRA"}

_GROUPS: Mapping[str, tuple[str, ...]] = {
    "weights": ("codes", "scales", "linear", "expanded", "norms", "master"),
    "embedding and head": ("embedding", "head"),
    "adapters": ("adapters", "average"),
    "gradients": ("gradients",),
    "moments": ("moments",),
    "activations, buffers": ("activations", "work"),
    "logits": ("logits",),
    "dequantization": ("dequantization",),
    "overhead": ("fragmentation", "first_use", "framework"),
}

PARTS_COLORS: Mapping[str, str] = {
    "weights": "#0b7a75",
    "embedding and head": "#56b4a8",
    "adapters": "#b06a00",
    "gradients": "#d99a3c",
    "moments": "#f0cf8e",
    "activations, buffers": "#4a6fa5",
    "logits": "#8fb0d9",
    "dequantization": "#9b6a9b",
    "overhead": "#9a9fa4",
}
"""Of the groups of `part_groups`, in their order."""


def part_groups(moment: Moment) -> dict[str, int]:
    """The bytes of a moment in few groups, for a bar."""
    grouped = {
        name: sum(moment.parts.get(part, 0) for part in parts) for name, parts in _GROUPS.items()
    }
    return {name: num for name, num in grouped.items() if num}


def plan_lines(found: Overview) -> Iterator[RenderableType]:
    """Everything to print."""
    asked = found.question
    shape, setup = asked.shape, asked.setup
    yield Text(f"{shape.name}, {format_count(shape.counts.total)} parameters", style="bold")
    rows = "1 row" if setup.num_rows == 1 else f"{setup.num_rows} rows"
    yield Text(
        f"{rows} of {setup.length:,} tokens in a forward, rank {setup.r}, activations "
        f"{setup.activations}, {setup.optimizer}, {8 * setup.value_bytes}-bit products, on "
        f"{asked.device}",
        style="dim",
    )
    yield Text()
    yield _table(found)
    yield Text()
    yield from _bars(found)
    yield Text()
    yield from _answers(found)


def _table(found: Overview) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column(Text("at the peak"))
    for name in found.memory:
        table.add_column(Text(_METHOD_NAMES[name]), justify="right", no_wrap=True)
    peaks = [plan.peak for plan in found.memory.values()]
    for part, label in COMPONENTS.items():
        if any(part in peak.parts for peak in peaks):
            cells = [format_bytes(peak.parts[part]) if part in peak.parts else "" for peak in peaks]
            table.add_row(label, *cells)
    table.add_section()
    table.add_row("peak", *(format_bytes(peak.total) for peak in peaks), style="bold")
    table.add_row("when", *(peak.name for peak in peaks))
    for choice in next(iter(found.choices.values())):
        by_method = (found.choices[name][choice] for name in found.memory)
        table.add_row(f"peak, activations {choice}", *(format_bytes(p.total) for p in by_method))
    if any(plan.below for plan in found.memory.values()):
        below = [sum(plan.below.values()) for plan in found.memory.values()]
        table.add_row("on a lower tier", *(format_bytes(each) if each else "" for each in below))
    table.add_row("parameters that learn", *_learnt(found))
    limit = found.question.limit_bytes
    if limit is not None:
        table.add_row(
            f"fits in {format_bytes(limit)}",
            *(
                "yes" if p.total <= limit else f"no, +{format_bytes(p.total - limit)}"
                for p in peaks
            ),
        )
    if found.time:
        table.add_section()
        times = list(found.time.values())
        table.add_row("tokens in a second", *(f"{time.tokens_per_second:,.0f}" for time in times))
        if times[0].seconds is not None:
            table.add_row("time", *(_seconds(time) for time in times))
        if times[0].cost is not None:
            table.add_row("money", *(f"{time.cost:,.2f}" for time in times))
        elif times[0].cost_per_million is not None:
            each = (f"{time.cost_per_million:,.2f}" for time in times)
            table.add_row("money for 1M tokens", *each)
    return table


def _learnt(found: Overview) -> list[str]:
    return [format_count(plan.num_trainable) for plan in found.memory.values()]


def _seconds(time: TimePlan) -> str:
    return "" if time.seconds is None else format_seconds(time.seconds)


def _bars(found: Overview) -> Iterator[Text]:
    """A stacked bar of each method, all to one scale, and what the colors are."""
    largest = max(plan.peak.total for plan in found.memory.values())
    seen: dict[str, None] = {}
    for name, plan in found.memory.items():
        line = Text(f"{_METHOD_NAMES[name]:<6} ")
        for group, num in part_groups(plan.peak).items():
            width = round(_BAR_WIDTH * num / largest)
            if width:
                line.append("█" * width, style=PARTS_COLORS[group])
                seen[group] = None
        line.append(f" {format_bytes(plan.peak.total)}")
        yield line
    legend = Text()
    for group in (name for name in PARTS_COLORS if name in seen):
        legend.append("█ ", style=PARTS_COLORS[group])
        legend.append(f"{group}  ")
    yield legend


def _answers(found: Overview) -> Iterator[Text]:
    asked = found.question
    if found.solution is not None:
        yield from _solution(found, found.solution)
    if found.smallest is not None:
        yield _fact("smallest device", f"{found.smallest.name} would do")
    overheads = next(iter(found.memory.values())).overheads
    yield _fact("overhead", overheads.source)
    longest = asked.shape.max_length
    if longest is not None and asked.setup.length > longest:
        yield _fact("context", f"the model was made for rows of {longest:,} tokens at most")
    if asked.rate is not None:
        yield _fact("speed", asked.rate.source)


def _solution(found: Overview, solution: Solution) -> Iterator[Text]:
    method = _METHOD_NAMES[solution.setup.method]
    peak = format_bytes(solution.plan.peak.total)
    if not solution.measures:
        yield _fact("fits", f"{method} as it is: {peak} {_when(solution)}")
    else:
        yield _fact("to fit", f"{method}, {peak} {_when(solution)}, with, in this order:")
    for number, each in enumerate(solution.measures, start=1):
        keys = ", ".join(f"{key}={value}" for key, value in each.keys)
        slower = "no slower" if each.time_factor < 1.005 else f"{each.time_factor:.2f} × the time"
        changes = "; another result" if each.changes_result else ""
        saved = format_bytes(each.saved_bytes)
        yield Text(f"  {number}. {each.name}: −{saved}, {slower}{changes}  {keys}")
    if found.most_rows:
        yield _fact(
            "room", f"{found.most_rows:,} such rows in a forward, or one of {found.most_length:,}"
        )
    if found.solution_time is not None and found.solution_time.seconds is not None:
        time = found.solution_time
        money = "" if time.cost is None else f", {time.cost:,.2f} at {time.price:g} an hour"
        yield _fact("run", f"{_seconds(time)}{money}")


def _when(solution: Solution) -> str:
    return f"at its peak ({solution.plan.peak.name})"


def _fact(label: str, value: str) -> Text:
    line = Text(f"{label:<16}", style="dim")
    line.append(value, style="not dim")
    return line
