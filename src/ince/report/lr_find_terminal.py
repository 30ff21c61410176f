"""A learning-rate range test in a terminal: the curve, and what it says."""

from collections.abc import Mapping

from rich.text import Text

from ince.report.lr_find import range_drawing, range_facts
from ince.report.terminal_plot import Mark, Series, plot_lines

__all__ = ["lr_find_lines"]


def lr_find_lines(content: Mapping[str, object], *, width: int) -> list[Text]:
    """The lines to print.

    Args:
        content: of an ``lr_find.json``.
        width: of the terminal, in characters.
    """
    lines: list[Text] = []
    drawing = range_drawing(content)
    if drawing is not None:
        lines.append(Text("loss by learning rate: · each step, ─ smoothed", style="dim"))
        marks = [] if drawing.suggestion is None else [Mark(drawing.suggestion[0], "green")]
        lines += plot_lines(
            [
                Series(drawing.losses, style="dim", joined=False),
                Series(drawing.smoothed, style="bold cyan"),
            ],
            x=drawing.x,
            y=drawing.y,
            x_ticks=drawing.x_ticks,
            y_ticks=drawing.y_ticks,
            width=min(width, 100),
            marks=marks,
        )
        lines.append(Text())
    for label, value in range_facts(content):
        line = Text(f"{label:<12}", style="dim")
        style = "bold green" if label == "suggestion" and "=" in value else "default"
        lines.append(line.append(value, style=style))
    return lines
