"""An adapter in a terminal: its facts, a table by kind of layer, and what stands out.

Text of files reaches rich as `Text`, never as its markup.
"""

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ince.lora.insight import AdapterInsight, Comparison
from ince.lora.insight.inspection import LayerInsight
from ince.lora.insight.summary import extremes, summarize_layers, summarize_pairs
from ince.report.adapter_facts import (
    PAIR_HEAD,
    facts_of,
    kind_head,
    kind_line,
    layer_head,
    layer_line,
    pair_line,
    percent,
    short_number,
)
from ince.report.loose import shown

__all__ = ["adapter_lines", "comparison_lines", "side_by_side"]

_LABEL_WIDTH = 15
_MAX_NAMES_SHOWN = 5


def _table(head: Sequence[str], *, num_texts: int = 1) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 1), show_edge=False)
    for n, name in enumerate(head):
        side = "left" if n < num_texts else "right"
        table.add_column(Text(name), justify=side, no_wrap=n >= num_texts, overflow="fold")
    return table


def _line(label: str, value: str, style: str = "") -> Text:
    text = Text(f"{label:<{_LABEL_WIDTH}}", style="dim")
    return text.append(value, style=style or "not dim")


def _rows(table: Table, rows: Sequence[Sequence[str]], *, last_apart: bool) -> Table:
    for n, row in enumerate(rows):
        if last_apart and n == len(rows) - 1 and n:
            table.add_section()
        table.add_row(*(Text(cell) for cell in row))
    return table


def adapter_lines(
    insight: AdapterInsight, *, every_layer: bool = False, with_facts: bool = True
) -> Iterator[RenderableType]:
    """Everything to print of one adapter.

    Args:
        every_layer: a row for each layer instead of each kind.
        with_facts: begin with what it is.
    """
    if with_facts:
        yield _line("adapter", shown(str(insight.folder)), "bold")
        for label, value in facts_of(insight):
            yield _line(label, value)
    if insight.compared_with is not None:
        yield _line("compared with", shown(insight.compared_with[0]))
    if insight.layers:
        has_base = any(layer.beside is not None for layer in insight.layers)
        yield Text()
        if every_layer:
            rows = [layer_line(layer, has_base=has_base) for layer in insight.layers]
            yield _rows(_table(layer_head(has_base=has_base)), rows, last_apart=False)
        else:
            lines = summarize_layers(insight.layers)
            rows = [kind_line(line, has_base=has_base) for line in lines]
            yield _rows(_table(kind_head(has_base=has_base)), rows, last_apart=len(lines) > 2)
        yield Text()
        for label, layer in extremes(insight.layers):
            yield _line(label, _standing_out(label, layer))
    yield from _remarks(insight)


def _standing_out(label: str, layer: LayerInsight) -> str:
    if "spread" in label:
        value = f"stable rank {layer.stable_rank:.2f}, 90% in {layer.rank_90}"
    elif layer.relative_norm is not None:
        value = f"‖ΔW‖/‖W‖ {percent(layer.relative_norm)}"
    else:
        value = f"‖ΔW‖ {short_number(layer.frobenius_norm)}"
    return f"{shown(layer.name, limit=120)}  {value}"


def _named(names: Sequence[str]) -> str:
    kept = ", ".join(shown(name, limit=120) for name in names[:_MAX_NAMES_SHOWN])
    more = len(names) - _MAX_NAMES_SHOWN
    return kept + (f" and {more} more" if more > 0 else "")


def _remarks(insight: AdapterInsight) -> Iterator[Text]:
    for note in insight.notes:
        yield _line("note", shown(note))
    for reason, names in insight.uncompared.items():
        yield _line("not compared", f"{len(names)} weights, {shown(reason)}: {_named(names)}")
    if insight.unknown:
        yield _line("not known", f"{len(insight.unknown)} tensors: {_named(insight.unknown)}")


def side_by_side(first: AdapterInsight, second: AdapterInsight) -> Table:
    """The facts of two adapters in two columns."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    table.add_column("")
    for each in (first, second):
        table.add_column(Text(shown(str(each.folder))), overflow="fold", ratio=1)
    ones, others = dict(facts_of(first)), dict(facts_of(second))
    for label in dict.fromkeys((*ones, *others)):
        one, other = ones.get(label, "–"), others.get(label, "–")
        style = "" if one == other else "bold"
        table.add_row(Text(label, style="dim"), Text(one, style=style), Text(other, style=style))
    return table


def comparison_lines(
    comparison: Comparison, *, every_layer: bool = False
) -> Iterator[RenderableType]:
    """What two adapters share, beside what random subspaces would."""
    yield _line("cosine", f"{short_number(comparison.cosine)} of both ΔWs over shared layers")
    yield Text()
    if every_layer:
        table = _table(["layer", *PAIR_HEAD[2:]])
        rows = [
            [shown(pair.name, limit=120), *pair_line(line)[2:]]
            for pair in comparison.pairs
            for line in summarize_pairs([pair])
        ]
        yield _rows(table, rows, last_apart=False)
    else:
        lines = summarize_pairs(comparison.pairs)
        rows = [pair_line(line) for line in lines]
        yield _rows(_table(PAIR_HEAD), rows, last_apart=len(lines) > 2)
    bases = comparison.bases
    if bases[0] != bases[1]:
        yield _line("note", f"their bases differ: {_base(bases[0])} and {_base(bases[1])}")
    for label, names in (
        ("only first", comparison.only_first),
        ("only second", comparison.only_second),
        ("other shape", comparison.other_shape),
    ):
        if names:
            yield _line(label, f"{len(names)} weights: {_named(names)}")


def _base(name: str | None) -> str:
    return "one that is not named" if name is None else shown(name, limit=120)
