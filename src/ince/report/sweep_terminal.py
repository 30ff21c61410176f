"""A sweep in a terminal: its table, the best on top."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ince.report.loose import number, sequence
from ince.report.sweep_view import CandidateView, Standing, SweepView, view_sweep

__all__ = ["plan_lines", "sweep_summary", "sweep_table"]

_MAX_NAMES = 30

_STYLES: dict[Standing, str] = {
    "best": "bold green",
    "finalist": "default",
    "stopped": "dim",
    "failed": "red",
}


def _loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _short(keys: Sequence[str]) -> list[str]:
    """The last parts of dotted keys, where these tell them apart."""
    ends = [key.rpartition(".")[2] for key in keys]
    return [end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)]


def sweep_table(view: SweepView) -> Table:
    """Candidates by how far they came, then by held-out loss; with two keys in 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("", justify="right", no_wrap=True)
    for key in _short(view.keys):
        table.add_column(Text(key), overflow="fold")
    table.add_column("rung", justify="right", no_wrap=True)
    table.add_column("steps", justify="right", no_wrap=True)
    table.add_column("held-out\nloss", justify="right", no_wrap=True)
    table.add_column("training\nloss", justify="right", no_wrap=True)
    table.add_column("tokens/s", justify="right", no_wrap=True)
    table.add_column("peak\nmemory", justify="right", no_wrap=True)
    for place, each in enumerate(view.candidates):
        ends = place + 1 < len(view.candidates) and view.candidates[place + 1].rung != each.rung
        table.add_row(*_cells(each), style=_STYLES[each.standing], end_section=ends)
    return table


def _cells(each: CandidateView) -> list[RenderableType]:
    sign = {"best": "★ ", "failed": "✗ "}.get(each.standing, "")
    return [
        f"{sign}{each.rank}",
        *(Text(value) for value in each.values),
        each.rung,
        f"{each.steps:,}",
        _loss(each.loss),
        _loss(each.train_loss),
        each.speed,
        each.peak,
    ]


def sweep_summary(content: Mapping[str, object], folder: Path) -> RenderableType:
    """The table, and beneath it what was saved and what to do next.

    Args:
        content: of a ``sweep.json``.
        folder: of the sweep.
    """
    view = view_sweep(content)
    parts: list[RenderableType] = [sweep_table(view), Text()]
    best = view.best
    if best is not None:
        parts.append(_line("best", Text(best.name, style="bold green")))
    parts += [
        _line("failed", Text(f"{each.name}: {each.words.removeprefix('failed: ')}", style="red"))
        for each in view.candidates
        if each.standing == "failed"
    ][:_MAX_NAMES]
    if view.num_steps_trained:
        share = 100 * view.num_steps_trained / max(1, view.num_steps_of_all)
        words = f"{view.num_steps_trained:,} steps, {share:.0f}% of training all candidates whole"
        parts.append(_line("trained", Text(words)))
    parts += [_line("remark", Text(remark, style="yellow")) for remark in view.remarks]
    if best is not None:
        recipe = folder / "best.yaml"
        parts.append(_line("recipe", Text(str(recipe))))
        parts.append(_line("next", Text(f"ince train {recipe}, which measures the best")))
    return Group(*parts)


def _line(label: str, value: Text) -> Text:
    return Text(f"{label:<11}", style="dim").append_text(value)


def plan_lines(
    names: Sequence[str],
    rungs: Sequence[Mapping[str, object]],
    *,
    cost: float,
    remarks: Sequence[str],
) -> list[Text]:
    """What a sweep would do: its candidates, its rungs, and what that comes to.

    Args:
        names: of the candidates.
        rungs: ``num_candidates``, and in ``steps`` those of the shortest and the longest one.
        cost: in trainings of full length.
        remarks: what a reader should know.
    """
    lines = [_line("candidates", Text(f"{len(names):,}", style="bold"))]
    lines += [Text(f"{'':<11}{name}") for name in names[:_MAX_NAMES]]
    if len(names) > _MAX_NAMES:
        lines.append(Text(f"{'':<11}and {len(names) - _MAX_NAMES:,} more", style="dim"))
    for level, rung in enumerate(rungs, start=1):
        ends = [f"{step:,.0f}" for step in map(number, sequence(rung.get("steps"))) if step]
        span = " to ".join(dict.fromkeys(ends))
        words = f"{rung.get('num_candidates')} trained to step {span}"
        lines.append(_line(f"rung {level}", Text(words)))
    whole = f"{cost:.2f}".rstrip("0").rstrip(".")
    lines.append(
        _line("cost", Text(f"{whole} whole trainings instead of {len(names):,}", style="bold"))
    )
    return [*lines, *(_line("remark", Text(remark, style="yellow")) for remark in remarks)]
