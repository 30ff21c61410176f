"""The same results in a terminal: the table of before and after, and a run in a few lines.

Verdicts, units and rounding come from `ince.report.scores`, so that the terminal and the
page never disagree. Text of files reaches rich as `Text`, never as its markup, and without
control characters: a label cannot color, blink or move the cursor.
"""

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ince.record import RunRecord
from ince.report.loose import boolean, mapping, number, sequence, text
from ince.report.scores import (
    ENGLISH,
    Score,
    Verdict,
    confidence_percent,
    cost_sentence,
    gain_sentences,
    interval_ends,
    read_scores,
    scale_ends,
)
from ince.units import format_bytes, format_count, format_seconds

__all__ = ["before_after_table", "run_summary"]

_BAR_WIDTH = 15

_STYLES: dict[Verdict, str] = {
    "better": "green",
    "worse": "red",
    "unclear": "dim",
    "changed": "bold",
    "unknown": "dim",
}

_STATUS = {
    "done": ("✓ done", "green"),
    "running": ("… not finished", "yellow"),
    "interrupted": ("‖ interrupted", "yellow"),
    "failed": ("✗ failed", "red"),
}


def _bar(score: Score, among: Sequence[Score]) -> Text:
    """``│╌╌╌├──●──┤``: the interval of a difference against no change, better to the right."""
    own = interval_ends(score, among)
    if own is None:
        return Text("")
    bottom, top = scale_ends(among)

    def at(value: float) -> int:
        return round((value - bottom) / (top - bottom) * (_BAR_WIDTH - 1))

    low, middle, high = (at(end) for end in own)
    zero = at(0.0)
    cells = [" "] * _BAR_WIDTH
    for i in range(min(zero, middle), max(zero, middle) + 1):
        cells[i] = "╌"
    for i in range(low, high + 1):
        cells[i] = "─"
    cells[zero] = "│"
    cells[low], cells[high] = "├", "┤"
    cells[middle] = "●"
    return Text("".join(cells), style=_STYLES[score.verdict], no_wrap=True)


def before_after_table(evaluation: Mapping[str, object]) -> Table:
    """The scores of an evaluation (``eval.json``): echo, base, tuned, difference, interval.

    Groups are set apart by a line. The verdict is in words and a sign besides its color.
    Everything but long labels fits 80 columns.
    """
    scores = read_scores(evaluation)
    has_echo = any(score.echo is not None for score in scores)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("score", min_width=14)
    if has_echo:
        table.add_column("echo", justify="right", style="dim", no_wrap=True)
    table.add_column("base", justify="right", no_wrap=True)
    table.add_column("tuned", justify="right", style="bold", no_wrap=True)
    interval = f"{confidence_percent(evaluation)} interval".strip()
    table.add_column(f"difference\n{interval}", justify="right", no_wrap=True)
    table.add_column("better →", no_wrap=True, min_width=_BAR_WIDTH)
    for place, score in enumerate(scores):
        label = Text(score.label)
        if score.unit and not score.is_percentage:
            label.append(f"\n{score.unit}", style="dim")
        change = Text(score.shown_change(score.difference))
        change.append(f"\n{score.shown_interval()}", style="dim")
        is_english = score.group.casefold() == ENGLISH
        beside = [s for s in scores if (s.group.casefold() == ENGLISH) == is_english]
        verdict = _bar(score, beside)
        verdict.append(f"\n{score.verdict_words}", style=_STYLES[score.verdict])
        table.add_row(
            label,
            *([score.shown(score.echo)] if has_echo else []),
            score.shown(score.base),
            score.shown(score.tuned),
            change,
            verdict,
            end_section=place + 1 < len(scores) and scores[place + 1].group != score.group,
        )
    return table


def _proof_line(value: object) -> Text | None:
    proof = mapping(value)
    name = text(proof.get("name"), limit=120)
    if name is None:
        return None
    holds = boolean(proof.get("holds"))
    sign, style = ("?", "yellow") if holds is None else ("✓", "green") if holds else ("✗", "red")
    line = Text.assemble((f"{sign} ", style), name.replace("_", " "))
    measured, limit = number(proof.get("value")), number(proof.get("limit"))
    if measured is not None:
        unit = text(proof.get("unit"), limit=40) or ""
        bound = f", limit {limit:.4g}" if limit is not None else ""
        line.append(f"  {measured:.4g} {unit}{bound}".rstrip(), style="dim")
    return line


def run_summary(record: RunRecord | Mapping[str, object]) -> RenderableType:
    """A run in a few lines: how it ended, what was gained, its costs and its proofs.

    `record` is the run record or the content of a ``run.json``; parts not written are left out.
    """
    content: Mapping[str, object] = (
        record.content if isinstance(record, RunRecord) else mapping(record)
    )
    lines: list[RenderableType] = []
    status = text(content.get("status"), limit=40) or "unknown"
    words, style = _STATUS.get(status, (f"? {status}", "yellow"))
    base = text(mapping(content.get("base")).get("name"), limit=120)
    first = Text(words, style=f"bold {style}")
    if base:
        first.append(f"  {base}", style="not bold default")
    lines.append(first)
    what = text(mapping(content.get("error")).get("what"))
    if what:
        lines.append(Text(what, style="red"))
    scores = read_scores(mapping(content.get("evaluation")))
    lines += [Text(sentence) for sentence in gain_sentences(scores)]
    cost = cost_sentence(scores)
    if cost:
        lines.append(Text(cost))
    facts = _fact_grid(content)
    if facts.row_count:
        lines.append(facts)
    proofs = (_proof_line(item) for item in sequence(content.get("proofs")))
    lines += [line for line in proofs if line is not None]
    return Group(*lines)


def _fact_grid(content: Mapping[str, object]) -> Table:
    training = mapping(content.get("training"))
    first, final = number(training.get("first_loss")), number(training.get("final_loss"))
    seconds, peak = number(content.get("seconds")), number(content.get("peak_bytes"))
    tokens, speed = number(training.get("num_tokens")), number(training.get("tokens_per_second"))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    if seconds:
        grid.add_row("time", format_seconds(seconds))
    if peak:
        grid.add_row("peak memory", format_bytes(peak))
    if first is not None and final is not None:
        grid.add_row("training loss", f"{first:.3f} → {final:.3f}")
    if tokens:
        pace = f", {format_count(speed)} a second" if speed else ""
        grid.add_row("tokens", f"{format_count(tokens)}{pace}")
    return grid
