"""A plan as a PNG: a stacked bar for each method, with the limit as a line."""

from io import BytesIO

from ince.plan.overview import Overview
from ince.report.adapter_picture import check_can_draw_png
from ince.report.plan_terminal import PARTS_COLORS, part_groups
from ince.units import format_bytes, format_count

__all__ = ["plan_png"]

_PAPER, _INK, _QUIET, _GRID, _LIMIT = "#fcfbf9", "#1d1f21", "#666a6e", "#eceae5", "#b3261e"
_NAMES = {"full": "full", "lora": "LoRA", "qlora": "QLoRA"}
_GIB = 2**30


def plan_png(found: Overview) -> bytes:
    """Draw, and return the file's content.

    Raises:
        InputError: matplotlib is not installed.
    """
    check_can_draw_png()
    from matplotlib.figure import Figure

    asked = found.question
    bars = [(_NAMES[name], plan) for name, plan in found.memory.items()]
    if found.solution is not None and found.solution.measures:
        bars.append(("to fit", found.solution.plan))
    figure = Figure(figsize=(10, 1.9 + 0.62 * len(bars)), dpi=150, facecolor=_PAPER)
    axes = figure.add_axes((0.09, 0.26, 0.86, 0.56), facecolor=_PAPER)
    largest = max(plan.peak.total for _, plan in bars) / _GIB
    seen: dict[str, None] = {}
    for place, (_, plan) in enumerate(bars):
        left = 0.0
        for group, num in part_groups(plan.peak).items():
            width = num / _GIB
            axes.barh(place, width, left=left, height=0.62, color=PARTS_COLORS[group])
            left += width
            seen[group] = None
        axes.text(
            left + largest * 0.01,
            place,
            f"{format_bytes(plan.peak.total)}  {plan.peak.name}",
            va="center",
            color=_INK,
            fontsize=9,
        )
    if asked.limit_bytes is not None:
        axes.axvline(asked.limit_bytes / _GIB, color=_LIMIT, linewidth=1.2)
        axes.annotate(
            format_bytes(asked.limit_bytes),
            (asked.limit_bytes / _GIB, 1.01),
            xycoords=("data", "axes fraction"),
            color=_LIMIT,
            fontsize=8,
            ha="center",
        )
    axes.set_xlim(0, largest * 1.22)
    axes.set_yticks(range(len(bars)), [label for label, _ in bars], color=_INK, fontsize=10)
    axes.invert_yaxis()
    axes.set_xlabel("GiB at the peak of a step", color=_QUIET, fontsize=9)
    axes.tick_params(colors=_QUIET, length=0)
    axes.grid(axis="x", color=_GRID)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
    figure.text(
        0.09,
        0.93,
        f"{asked.shape.name}, {format_count(asked.shape.counts.total)} parameters",
        fontsize=15,
        weight="bold",
        color=_INK,
        va="center",
    )
    setup = asked.setup
    figure.text(
        0.09,
        0.865,
        f"{setup.num_rows} × {setup.length:,} tokens, rank {setup.r}, activations "
        f"{setup.activations}, {setup.optimizer}, on {asked.device}",
        fontsize=9,
        color=_QUIET,
        va="center",
    )
    handles = [
        axes.barh(0, 0, color=PARTS_COLORS[name], label=name)
        for name in PARTS_COLORS
        if name in seen
    ]
    figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0.08, 0.01),
        ncols=5,
        frameon=False,
        fontsize=8,
        labelcolor=_INK,
        handlelength=1,
        columnspacing=1.4,
    )
    content = BytesIO()
    figure.savefig(content, format="png", facecolor=_PAPER)
    return content.getvalue()
