"""An inspection drawn for a terminal: the file, its lengths, and its first example in tokens."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ince.data.inspect import Bin, Inspection, TokenFacts
from ince.data.rows import printable
from ince.data.token_view import token_view, turn_table
from ince.units import format_bytes, format_count

__all__ = ["render"]

_NUM_PROBLEMS = 10
_BAR_CHARACTERS = 30


def _pairs_table(pairs: Sequence[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for label, value in pairs:
        table.add_row(label, Text(value))
    return table


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{printable(name)} {count:,}" for name, count in counts.items()) or "none"


def _bars(histogram: Sequence[Bin]) -> Table:
    tallest = max(bin_.count for bin_ in histogram)
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", style="dim", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    for bin_ in histogram:
        # A bin with few rows among many stays visible.
        length = round(_BAR_CHARACTERS * bin_.count / tallest) or int(bin_.count > 0)
        label = f"{bin_.low:,}" if bin_.low == bin_.high else f"{bin_.low:,}–{bin_.high:,}"
        table.add_row(label, Text("█" * length, style="cyan"), f"{bin_.count:,}")
    return table


def render(inspection: Inspection) -> RenderableType:
    """Draw an inspection for a terminal."""
    facts = inspection
    kind = facts.kind
    if facts.encoding is not None:
        kind += f", {facts.encoding}"
    if facts.delimiter is not None:
        kind += f", delimiter {facts.delimiter!r}"
    pairs = [
        ("file", str(facts.path)),
        ("kind", f"{kind}, {format_bytes(facts.num_bytes)}"),
        ("shape", facts.shape),
        ("rows", f"{facts.num_rows:,}, of which {len(facts.problems):,} cannot be used"),
        ("columns", _counts(facts.columns)),
    ]
    if facts.roles:
        pairs.append(("messages", _counts(facts.roles)))
    pairs.append(("sha256", facts.digest))
    parts: list[RenderableType] = [_pairs_table(pairs)]
    if facts.tokens is not None:
        parts += _token_parts(facts.tokens, facts.unit)
    if facts.problems:
        parts += _problem_parts(facts)
    if facts.example is not None:
        source = facts.example.example.source
        title = f"\nfirst example ({source}): ⟦learnt⟧, ■ where a turn stops"
        parts += [Text(title, style="bold"), token_view(facts.example)]
        parts += [Text(), turn_table(facts.example)]
    return Group(*parts)


def _token_parts(tokens: TokenFacts, unit: str) -> list[RenderableType]:
    share = tokens.num_targets / tokens.num_tokens
    longest = ", ".join(f"{unit} {r.number} ({r.num_tokens:,})" for r in tokens.longest_rows)
    spread = f"{tokens.shortest:,} to {tokens.longest:,}"
    spread += f", median {tokens.median:,}, mean {tokens.mean:,}"
    lost = f"{tokens.num_lost_tokens:,} tokens, {tokens.num_lost_targets:,} to learn, "
    lost += f"{tokens.num_lost_stops:,} stop tokens (truncation: {tokens.truncation})"
    packed = f"{tokens.num_packed_rows:,} rows, {tokens.packed_share:.1%} full; "
    packed += f"shared beginnings save {tokens.shared_share:.0%} of the tokens"
    pairs = [
        ("tokens", f"{format_count(tokens.num_tokens)} in {tokens.num_examples:,} examples"),
        ("learnt", f"{format_count(tokens.num_targets)} ({share:.0%})"),
        ("lengths", spread),
        ("truncated", f"{tokens.num_truncated:,} examples, to {tokens.max_length:,} tokens"),
        ("lost", lost),
        ("longest", longest),
        ("packed", packed),
    ]
    title = Text("\ntokens of an example", style="bold")
    return [Text(), _pairs_table(pairs), title, _bars(tokens.histogram)]


def _problem_parts(facts: Inspection) -> list[RenderableType]:
    lines = [f"{facts.unit} {p.number}: {p}" for p in facts.problems[:_NUM_PROBLEMS]]
    if len(facts.problems) > _NUM_PROBLEMS:
        lines.append(f"… and {len(facts.problems) - _NUM_PROBLEMS:,} more")
    return [
        Text("\nrows that cannot be used", style="bold red"),
        _pairs_table([(f"{count:,}", reason) for reason, count in facts.dropped.items()]),
        Text("\n".join(lines), style="dim"),
    ]
