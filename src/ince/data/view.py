"""An inspection drawn for a terminal, and one example with its mask made visible.

`token_view` marks the tokens that are learnt: the one look that finds a wrong mask. Text from a
data file reaches the terminal with its control characters spelled out.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ince.data.example import Example
from ince.data.inspect import Bin, Inspection, TokenFacts
from ince.data.rows import printable
from ince.units import format_bytes, format_count

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["render", "token_view"]

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


def render(
    inspection: Inspection, tokenizer: "PreTrainedTokenizerBase | None" = None
) -> RenderableType:
    """Draw an inspection for a terminal; with the tokenizer, its example as well."""
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
    if facts.example is not None and tokenizer is not None:
        title = f"\nfirst example ({facts.example.source}), learnt tokens in ⟦green⟧"
        parts += [Text(title, style="bold"), token_view(facts.example, tokenizer)]
    return Group(*parts)


def _token_parts(tokens: TokenFacts, unit: str) -> list[RenderableType]:
    share = tokens.num_targets / tokens.num_tokens
    longest = ", ".join(f"{unit} {r.number} ({r.num_tokens:,})" for r in tokens.longest_rows)
    spread = f"{tokens.shortest:,} to {tokens.longest:,}"
    spread += f", median {tokens.median:,}, mean {tokens.mean:,}"
    pairs = [
        ("tokens", f"{format_count(tokens.num_tokens)} in {tokens.num_examples:,} examples"),
        ("learnt", f"{format_count(tokens.num_targets)} ({share:.0%})"),
        ("lengths", spread),
        ("truncated", f"{tokens.num_truncated:,} examples, to {tokens.max_length:,} tokens"),
        ("longest", longest),
        ("packed", f"{tokens.num_packed_rows:,} rows, {tokens.packed_share:.1%} full"),
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


def _visible(text: str) -> str:
    """Line ends are shown and kept; other control characters are spelled out."""
    return "".join(
        "⏎\n" if c == "\n" else c if c.isprintable() else f"\\x{ord(c):02x}" for c in text
    )


def token_view(example: Example, tokenizer: "PreTrainedTokenizerBase") -> Text:
    """An example's text with what is learnt in green and between ⟦ and ⟧, the rest dim.

    The marks hold without color too. What stands between them is decoded from the tokens that
    carry loss, not taken from the data file.
    """
    view = Text()
    begin = 0
    for end in range(1, example.num_tokens + 1):
        learnt = example.targets[begin]
        if end < example.num_tokens and example.targets[end] == learnt:
            continue
        ids = list(example.input_ids[begin:end])
        text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        shown = _visible(str(text))
        if learnt:
            view.append("⟦", style="green").append(shown, style="bold green")
            view.append("⟧", style="green")
        else:
            view.append(shown, style="dim")
        begin = end
    if example.num_truncated:
        view.append(f"… {example.num_truncated:,} tokens were cut off", style="yellow")
    return view
