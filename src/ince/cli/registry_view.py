"""How a registry looks in a terminal: tables and lines. Names and values are never markup."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from ince.cli.output import result_console
from ince.registry import (
    AdapterEntry,
    AuditRecord,
    Collected,
    Key,
    NameVersion,
    Tenant,
    Usage,
    Verified,
)
from ince.units import format_bytes, format_count

__all__ = [
    "audit_table",
    "collected_lines",
    "entry_lines",
    "entry_table",
    "history_table",
    "key_table",
    "print_table",
    "tenant_table",
    "usage_table",
    "verified_lines",
]

_SHORT = 12
# Wide enough for every column, where no terminal folds lines.
_PIPE_WIDTH = 180


def print_table(table: Table) -> None:
    """Print a table to stdout."""
    out = result_console()
    if not out.is_terminal:
        out.width = _PIPE_WIDTH
    out.print(table)


def _plain(value: object) -> str:
    """A value of a file on one line, without what moves a cursor."""
    text = " ".join(str(value).split())
    return "".join(each if each.isprintable() else "·" for each in text)


def _table(*columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    return table


def _add(table: Table, *cells: object) -> None:
    table.add_row(*(each if isinstance(each, Text) else Text(_plain(each)) for each in cells))


def _many(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _time(text: str) -> str:
    return text[:16].replace("T", " ")


def _names(entry: AdapterEntry) -> str:
    return ", ".join(
        f"{held.tenant}:{name}" if held.tenant else name
        for held in entry.holdings
        for name in held.names
    )


def _kind(config: Mapping[str, object]) -> str:
    words = [str(config.get("peft_type", "?")).lower()]
    if config.get("r"):
        words.append(f"r={config['r']}")
    words += [
        word for word, key in (("DoRA", "use_dora"), ("rsLoRA", "use_rslora")) if config.get(key)
    ]
    return " ".join(words)


def entry_table(entries: Iterable[AdapterEntry]) -> Table:
    """Adapters, a row each; a name of a tenant as ``tenant:name``."""
    table = _table("digest", "names", "kind", "size", "put (UTC)", right=("size",))
    for entry in entries:
        size = format_bytes(entry.num_bytes)
        row = (_names(entry) or "–", _kind(entry.config), size, _time(entry.created))
        _add(table, entry.digest[:_SHORT], *row)
    return table


def entry_lines(entry: AdapterEntry, folder: Path | None = None) -> Iterator[Text]:
    """Everything that is known of an adapter."""
    facts: list[tuple[str, object]] = [
        ("digest", entry.digest),
        ("base", entry.base_digest or "not known"),
        ("size", format_bytes(entry.num_bytes)),
        ("put", entry.created),
    ]
    facts += [(name, value) for name, value in sorted(entry.config.items())]
    if folder is not None:
        facts.append(("folder", folder))
    for name, value in facts:
        yield _line(name, value)
    for held in entry.holdings:
        whose = f"of tenant {held.tenant}" if held.tenant else "shared"
        yield Text(_plain(f"\n{whose}: {', '.join(held.names) or 'without a name'}"), style="bold")
        for name, value in (held.lineage or {}).items():
            yield _line(f"  {name}", value)


def _line(name: str, value: object) -> Text:
    return Text.assemble((f"{name:<24}", "dim"), " ", _plain(value))


def history_table(versions: Iterable[NameVersion]) -> Table:
    """The versions of a name, newest first."""
    table = _table(
        "version", "digest", "since (UTC)", "by", "back to", "", right=("version", "back to")
    )
    for each in versions:
        state = "now" if each.is_current else "" if each.is_here else "no longer here"
        row = (each.number, each.digest[:_SHORT], _time(each.created), each.actor)
        _add(
            table,
            *row,
            each.previous or "–",
            Text(state, style="bold" if each.is_current else "dim"),
        )
    return table


def audit_table(changes: Iterable[AuditRecord]) -> Table:
    """Changes, oldest first."""
    table = _table("change", "time (UTC)", "by", "what", "of", "before → after", right=("change",))
    for each in changes:
        subject = each.subject[:_SHORT] if len(each.subject) > 40 else each.subject
        of = f"{each.tenant}:{subject}" if each.tenant and each.tenant != subject else subject
        row = (each.time[:19].replace("T", " "), each.actor, each.action, of)
        _add(table, each.id, *row, _difference(each.before, each.after))
    return table


def _difference(before: Mapping[str, object] | None, after: Mapping[str, object] | None) -> str:
    """What differs, long values cut."""
    first_of, second_of = dict(before or {}), dict(after or {})
    shown: list[str] = []
    for key in {**first_of, **second_of}:
        old, new = first_of.get(key), second_of.get(key)
        if old == new or isinstance(old or new, dict):
            continue
        first = "" if before is None or old is None else f"{_cut(old)} "
        second = "" if after is None else f"→ {_cut(new)}"
        shown.append(f"{key} {first}{second}".strip())
    return "; ".join(shown)


def _cut(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:_SHORT]}…"


def _number(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def tenant_table(tenants: Iterable[Tenant]) -> Table:
    """Tenants, a row each; a dash is no limit."""
    numbers = ("requests/min", "tokens/min", "at once", "adapters", "bytes", "weight")
    table = _table("tenant", "may use", *numbers, "", right=numbers)
    for each in tenants:
        limits = (each.requests_per_minute, each.tokens_per_minute, each.max_concurrent)
        _add(
            table,
            each.name,
            ", ".join(each.allowed) or "its own",
            *map(_number, (*limits, each.max_adapters)),
            "–" if each.max_bytes is None else format_bytes(each.max_bytes),
            f"{each.weight:g}",
            "admin" if each.is_admin else "",
        )
    return table


def key_table(keys: Iterable[Key]) -> Table:
    """Keys, a row each."""
    table = _table("id", "tenant", "label", "made (UTC)", "revoked (UTC)")
    for each in keys:
        revoked = "–" if each.revoked is None else _time(each.revoked)
        _add(table, each.id, each.tenant, each.label, _time(each.created), revoked)
    return table


def usage_table(used: Iterable[Usage]) -> Table:
    """What was used, by day and adapter."""
    numbers = ("requests", "prompt tokens", "answer tokens")
    table = _table("day", "tenant", "adapter", *numbers, right=numbers)
    for each in used:
        counts = (each.num_requests, each.prompt_tokens, each.completion_tokens)
        adapter = each.adapter[:_SHORT] or "the base"
        _add(table, each.day, each.tenant or "–", adapter, *map(format_count, counts))
    return table


def collected_lines(done: Collected, *, dry_run: bool) -> Iterator[str]:
    """What a collection did."""
    verb = "would remove" if dry_run else "removed"
    size = format_bytes(done.num_bytes)
    yield f"{verb} {_many(len(done.digests), 'adapter')}, {size}; kept {done.num_kept}"
    for digest in done.digests:
        yield f"  {digest}"
    if done.leftovers:
        yield f"{verb} {_many(len(done.leftovers), 'folder')} that a killed process left"
    if not dry_run and not done.swept:
        yield "half-made copies were left alone: an adapter is being put now"


def verified_lines(found: Verified) -> Iterator[str]:
    """What a check found."""
    for problem in found.problems:
        yield f"✗ {_plain(problem)}"
    if not found.problems:
        yield (
            f"✓ {_many(found.num_adapters, 'adapter')}, {format_bytes(found.num_bytes)}, "
            f"{_many(found.num_names, 'name')}, {_many(found.num_changes, 'change')}: "
            "all as they were written"
        )
