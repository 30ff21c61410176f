"""Tokens drawn for a terminal: what is learnt, where turns stop, where one token ends.

The one look that finds a wrong mask. Learnt tokens are green and stand between ⟦ and ⟧, a stop
token has ■ behind it: the marks hold without color. Neighboring tokens differ in shade. Each
shade brings its own letters' color, so that dark and light terminals show the same. Text from
a data file reaches the terminal with its control characters spelled out.
"""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ince.data.close_up import CloseUp, PackedCloseUp
from ince.data.rows import printable

__all__ = ["packed_view", "token_view", "turn_table"]

_CONTEXT = ("black on #e4e4e4", "black on #cfcfcf")
_LEARNT = ("black on #b7ebb0", "black on #8fd68a")
_STOP = "bold white on #1a7f37"
_MARK = "bold green"


def _visible(text: str) -> str:
    """Line ends are shown and kept; other control characters are spelled out."""
    return "".join(
        "⏎\n" if c == "\n" else c if c.isprintable() else f"\\x{ord(c):02x}" for c in text
    )


def _drawn(tokens: Sequence[str], learnt: Sequence[bool], stops: Sequence[int]) -> Text:
    view = Text()
    inside = False
    for place, (token, is_learnt) in enumerate(zip(tokens, learnt, strict=True)):
        if is_learnt and not inside:
            view.append("⟦", style=_MARK)
        if inside and not is_learnt:
            view.append("⟧", style=_MARK)
        inside = is_learnt
        shades = _LEARNT if is_learnt else _CONTEXT
        view.append(_visible(token), style=_STOP if place in stops else shades[place % 2])
        if place in stops:
            view.append("■", style=_MARK)
    if inside:
        view.append("⟧", style=_MARK)
    return view


def token_view(shown: CloseUp) -> Text:
    """An example's tokens; what stands in green is what carries loss, not what the file says."""
    example = shown.example
    view = _drawn(shown.tokens, example.targets, example.stops)
    if example.num_truncated:
        view.append(f" … {example.num_truncated:,} tokens were cut off", style="yellow")
    return view


def turn_table(shown: CloseUp) -> Table:
    """The turns of an example: how many tokens, how many learnt, with what each stops."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("turn")
    for name in ("tokens", "learnt"):
        table.add_column(name, justify="right")
    table.add_column("stops with")
    for turn in shown.turns:
        stop = Text("–", style="dim")
        if turn.stop_text is not None:
            stop = Text(f"{printable(turn.stop_text)} ■", style="green")
        elif turn.is_cut:
            stop = Text("cut", style="yellow")
        num_tokens, num_learnt = turn.last - turn.first, turn.num_learnt
        table.add_row(turn.role, f"{num_tokens:,}", f"{num_learnt:,}", stop)
    return table


def packed_view(shown: PackedCloseUp) -> RenderableType:
    """A packed row, part by part: whose tokens, at which positions, and what is learnt."""
    title = f"packed row {shown.number:,} of {shown.num_rows:,}: {shown.num_tokens:,} of "
    title += f"{shown.max_length:,} tokens"
    parts: list[RenderableType] = [Text(title, style="bold")]
    for part in shown.parts:
        last = part.first_position + part.last - part.first - 1
        owner = part.sources[0]
        if len(part.sources) > 1:
            owner = f"shared by {len(part.sources)} examples: {', '.join(part.sources[:3])}"
            owner += ", …" if len(part.sources) > 3 else ""
        head = Text("\n── ", style="dim").append(owner, style="bold not dim")
        head.append(f" ── positions {part.first_position:,} to {last:,}")
        head.append(f", places {part.first:,} to {part.last - 1:,} of the row")
        parts += [head, _drawn(part.tokens, part.learnt, part.stops)]
    return Group(*parts)
