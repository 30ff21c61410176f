"""Which adapters a registry has, who put them, and whether a tenant has room for more.

The same content is there once, however many tenants put it; each of them holds it, and it
counts against the quota of each.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from ince.errors import AdapterError, InputError
from ince.registry.audit import Change
from ince.registry.content import Intake
from ince.registry.database import Fields, Snapshot
from ince.registry.names import SHARED

__all__ = [
    "AdapterEntry",
    "Holding",
    "find_entries",
    "find_entry",
    "hold",
    "most_bytes",
    "no_such_digest",
]


@dataclass(frozen=True)
class Holding:
    """A tenant's own of an adapter: the run that it came from, and what the tenant calls it."""

    tenant: str
    created: str
    lineage: dict[str, object] | None
    names: tuple[str, ...]


@dataclass(frozen=True)
class AdapterEntry:
    """An adapter of the registry."""

    digest: str
    base_digest: str | None
    """Of the base's weights, where it is known."""
    num_bytes: int
    config: dict[str, object]
    """Method, rank, scale, base and number of parameters."""
    created: str
    holdings: tuple[Holding, ...]

    def to_dict(self) -> dict[str, object]:
        """As a JSON-ready object."""
        return asdict(self)


def _entry(row: Fields, holdings: list[Holding]) -> AdapterEntry:
    return AdapterEntry(
        digest=row.text("digest"),
        base_digest=row.text_or_none("base_digest"),
        num_bytes=row.integer("num_bytes"),
        config=row.json("config"),
        created=row.text("created"),
        holdings=tuple(holdings),
    )


def _named(snapshot: Snapshot, digest: str | None) -> dict[tuple[str, str], list[str]]:
    found: dict[tuple[str, str], list[str]] = {}
    for row in snapshot.rows(
        "SELECT a.tenant, a.name, v.digest FROM aliases a JOIN versions v ON v.id = a.version "
        "WHERE ? IS NULL OR v.digest = ? ORDER BY a.tenant, a.name",
        digest,
        digest,
    ):
        found.setdefault((row.text("tenant"), row.text("digest")), []).append(row.text("name"))
    return found


def find_entries(
    snapshot: Snapshot, *, digest: str | None = None, tenant: str | None = None
) -> list[AdapterEntry]:
    """The adapters, oldest first; those of a digest, or of a tenant and its own of them."""
    names = _named(snapshot, digest)
    holdings: dict[str, list[Holding]] = {}
    for row in snapshot.rows(
        "SELECT * FROM holdings WHERE (? IS NULL OR digest = ?) AND (? IS NULL OR tenant = ?) "
        "ORDER BY created, tenant",
        digest,
        digest,
        tenant,
        tenant,
    ):
        key = (row.text("tenant"), row.text("digest"))
        own = tuple(names.get(key, ()))
        lineage = row.json_or_none("lineage")
        held = Holding(key[0], row.text("created"), lineage, own)
        holdings.setdefault(key[1], []).append(held)
    rows = snapshot.rows(
        "SELECT * FROM adapters WHERE ? IS NULL OR digest = ? ORDER BY created, digest",
        digest,
        digest,
    )
    found = [_entry(row, holdings.get(row.text("digest"), [])) for row in rows]
    return [each for each in found if tenant is None or each.holdings]


def no_such_digest(digest: str, *, where: object = None) -> AdapterError:
    """That a registry has no such adapter."""
    return AdapterError(
        "the registry has no adapter of this digest",
        where=where,
        got=digest,
        do="see: ince registry list",
    )


def find_entry(snapshot: Snapshot, digest: str) -> AdapterEntry:
    """The adapter of `digest`.

    Raises:
        AdapterError: there is none.
    """
    found = find_entries(snapshot, digest=digest)
    if not found:
        raise no_such_digest(digest)
    return found[0]


def _quota(snapshot: Snapshot, tenant: str) -> tuple[int | None, int | None]:
    if tenant == SHARED:
        return None, None
    row = snapshot.row("SELECT max_adapters, max_bytes FROM tenants WHERE name = ?", tenant)
    if row is None:
        raise InputError(
            "no such tenant",
            got=tenant,
            do=f"add it first: ince registry tenant add {tenant}",
        )
    return row.integer_or_none("max_adapters"), row.integer_or_none("max_bytes")


def _held(snapshot: Snapshot, tenant: str) -> tuple[int, int]:
    row = snapshot.row(
        "SELECT count(*) AS num, coalesce(sum(a.num_bytes), 0) AS bytes "
        "FROM holdings h JOIN adapters a ON a.digest = h.digest WHERE h.tenant = ?",
        tenant,
    )
    assert row is not None
    return row.integer("num"), row.integer("bytes")


def most_bytes(snapshot: Snapshot, tenant: str) -> int | None:
    """How many bytes a tenant may hold at most, hence an adapter have; None without a limit.

    Raises:
        InputError: no such tenant.
    """
    return _quota(snapshot, tenant)[1]


def hold(
    change: Change, intake: Intake, tenant: str, lineage: Mapping[str, object] | None
) -> AdapterEntry | None:
    """Note that `tenant` put an adapter. The same again changes nothing.

    Returns:
        what the registry had of it before, or None.

    Raises:
        AdapterError: it is recorded for another base, or the tenant's quota does not allow it.
        InputError: no such tenant.
    """
    snapshot, digest = change.snapshot, intake.digest
    earlier = find_entries(snapshot, digest=digest)
    before = earlier[0] if earlier else None
    held = (
        None if before is None else next((h for h in before.holdings if h.tenant == tenant), None)
    )
    if before is None:
        snapshot.run(
            "INSERT INTO adapters VALUES (?, ?, ?, ?, ?)",
            digest,
            intake.base_digest,
            intake.num_bytes,
            json.dumps(intake.config, sort_keys=True),
            change.time,
        )
    else:
        _agree_on_base(change, before, intake)
    if held is None:
        _check_room(snapshot, tenant, intake)
        snapshot.run(
            "INSERT INTO holdings VALUES (?, ?, ?, ?)",
            tenant,
            digest,
            None if lineage is None else json.dumps(lineage, sort_keys=True),
            change.time,
        )
    elif lineage is not None and lineage != held.lineage:
        snapshot.run(
            "UPDATE holdings SET lineage = ? WHERE tenant = ? AND digest = ?",
            json.dumps(lineage, sort_keys=True),
            tenant,
            digest,
        )
    after = find_entry(snapshot, digest)
    now_held = next(each for each in after.holdings if each.tenant == tenant)
    if held != now_held or before is None or before.base_digest != after.base_digest:
        change.log(
            "put",
            tenant=tenant,
            subject=digest,
            before=None if held is None or before is None else _facts(before, held),
            after=_facts(after, now_held),
        )
    return before


def _facts(entry: AdapterEntry, held: Holding) -> dict[str, object]:
    return {
        "base_digest": entry.base_digest,
        "num_bytes": entry.num_bytes,
        "config": entry.config,
        "lineage": held.lineage,
    }


def _agree_on_base(change: Change, before: AdapterEntry, intake: Intake) -> None:
    if intake.base_digest in (None, before.base_digest):
        return
    if before.base_digest is not None:
        raise AdapterError(
            "the registry has this adapter for another base",
            where=intake.digest,
            got=f"base {intake.base_digest}",
            expected=f"base {before.base_digest}",
            do="give the base that it was trained on",
        )
    change.snapshot.run(
        "UPDATE adapters SET base_digest = ? WHERE digest = ?", intake.base_digest, intake.digest
    )


def _check_room(snapshot: Snapshot, tenant: str, intake: Intake) -> None:
    max_adapters, max_bytes = _quota(snapshot, tenant)
    num, num_bytes = _held(snapshot, tenant)
    too_many = max_adapters is not None and num + 1 > max_adapters
    if too_many or (max_bytes is not None and num_bytes + intake.num_bytes > max_bytes):
        got = f"{num + 1} adapters" if too_many else f"{num_bytes + intake.num_bytes:,} bytes"
        limit = f"{max_adapters} adapters" if too_many else f"{max_bytes:,} bytes"
        raise AdapterError(
            "the tenant's quota does not allow another adapter",
            where=f"tenant {tenant}",
            got=got,
            expected=f"at most {limit}",
            do="remove names that are not needed and run: ince registry gc --keep 0; or raise the "
            "quota: ince registry tenant change",
        )
