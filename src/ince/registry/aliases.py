"""Names of adapters: what they stand for, what they stood for, and the way back.

A name belongs to one tenant, or is shared. Each time it is given to another adapter it gets a
version, which remembers the version before; a rollback follows that link, so a second one goes
back further, and does not swing between two.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from ince.errors import AdapterError, did_you_mean
from ince.registry.audit import Change
from ince.registry.database import Fields, Snapshot
from ince.registry.names import SHARED, check_name

__all__ = [
    "Alias",
    "NameVersion",
    "find_aliases",
    "find_history",
    "find_name",
    "no_such_name",
    "point",
    "reached",
    "take_name",
    "turn_back",
]


@dataclass(frozen=True)
class Alias:
    """A name and what it stands for now."""

    tenant: str
    name: str
    digest: str
    number: int
    """Of the version, from 1."""
    changed: str

    def to_dict(self) -> dict[str, object]:
        """As a JSON-ready object."""
        return asdict(self)


@dataclass(frozen=True)
class NameVersion:
    """What a name stood for once, or stands for."""

    number: int
    digest: str
    previous: int | None
    """The version that a rollback from this one goes to."""
    created: str
    actor: str
    is_current: bool
    is_here: bool
    """Whether the adapter is still in the registry."""

    def to_dict(self) -> dict[str, object]:
        """As a JSON-ready object."""
        return asdict(self)


_ALIASES = (
    "SELECT a.tenant, a.name, a.changed, a.version, v.digest, v.number, v.previous "
    "FROM aliases a JOIN versions v ON v.id = a.version"
)


def _alias(row: Fields) -> Alias:
    return Alias(
        tenant=row.text("tenant"),
        name=row.text("name"),
        digest=row.text("digest"),
        number=row.integer("number"),
        changed=row.text("changed"),
    )


def find_aliases(snapshot: Snapshot, *, tenant: str | None = None) -> list[Alias]:
    """All names, or a tenant's own, in order."""
    sql = f"{_ALIASES} WHERE ? IS NULL OR a.tenant = ? ORDER BY a.tenant, a.name"
    return [_alias(row) for row in snapshot.rows(sql, tenant, tenant)]


def _row(snapshot: Snapshot, tenant: str, name: str) -> Fields | None:
    return snapshot.row(f"{_ALIASES} WHERE a.tenant = ? AND a.name = ?", tenant, name)


def find_name(snapshot: Snapshot, tenant: str, name: str) -> Alias | None:
    """A tenant's own name, or None."""
    row = _row(snapshot, tenant, name)
    return None if row is None else _alias(row)


def no_such_name(name: str, known: Iterable[str]) -> AdapterError:
    """That there is no such name, for somebody who may see those that are `known`."""
    return AdapterError("no adapter has this name", got=name, do=did_you_mean(name, known))


def _own(snapshot: Snapshot, tenant: str, name: str) -> Fields:
    row = _row(snapshot, tenant, name)
    if row is None:
        names = [alias.name for alias in find_aliases(snapshot, tenant=tenant)]
        raise no_such_name(name, names)
    return row


def point(change: Change, tenant: str, name: str, digest: str) -> None:
    """Let `name` stand for `digest`; nothing happens when it does already.

    Raises:
        AdapterError: the tenant holds no such adapter.
        InputError: no adapter may have this name.
    """
    check_name(name)
    snapshot = change.snapshot
    if not snapshot.row("SELECT 1 FROM holdings WHERE tenant = ? AND digest = ?", tenant, digest):
        whose = "it is not shared" if tenant == SHARED else f"tenant {tenant} has not put it"
        raise AdapterError(
            f"this adapter cannot be given a name here: {whose}",
            got=digest,
            do="put it first: ince registry put ADAPTER"
            + (f" --tenant {tenant}" if tenant else ""),
        )
    row = _row(snapshot, tenant, name)
    if row is not None and row.text("digest") == digest:
        return
    last = snapshot.row(
        "SELECT coalesce(max(number), 0) AS number FROM versions WHERE tenant = ? AND name = ?",
        tenant,
        name,
    )
    number = 1 if last is None else last.integer("number") + 1
    version = snapshot.run(
        "INSERT INTO versions (tenant, name, number, digest, previous, created, actor) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        tenant,
        name,
        number,
        digest,
        None if row is None else row.integer("version"),
        change.time,
        change.actor,
    )
    snapshot.run(
        "INSERT INTO aliases VALUES (?, ?, ?, ?) ON CONFLICT (tenant, name) DO UPDATE SET "
        "version = excluded.version, changed = excluded.changed",
        tenant,
        name,
        version,
        change.time,
    )
    _log(change, "alias", row, tenant, name, digest, number)


def _log(
    change: Change,
    action: str,
    row: Fields | None,
    tenant: str,
    name: str,
    digest: str,
    number: int,
) -> None:
    before = (
        None if row is None else {"digest": row.text("digest"), "version": row.integer("number")}
    )
    after = {"digest": digest, "version": number}
    change.log(action, tenant=tenant, subject=name, before=before, after=after)


def turn_back(change: Change, tenant: str, name: str) -> str:
    """Let `name` stand for what it stood for before; returns that digest.

    Raises:
        AdapterError: no such name, nothing before, or it was removed from the registry.
    """
    snapshot = change.snapshot
    row = _own(snapshot, tenant, name)
    previous = row.integer_or_none("previous")
    if previous is None:
        raise AdapterError(
            "the name never stood for another adapter: there is nothing to go back to",
            where=name,
            got=f"version {row.integer('number')}",
            do=f"see: ince registry history {name}",
        )
    version = snapshot.row(
        "SELECT v.digest, v.number, h.digest AS held FROM versions v LEFT JOIN holdings h "
        "ON h.tenant = v.tenant AND h.digest = v.digest WHERE v.id = ?",
        previous,
    )
    if version is None or version.text_or_none("held") is None:
        raise AdapterError(
            "the adapter that the name stood for before is no longer in the registry",
            where=name,
            got=None if version is None else version.text("digest"),
            do="put it again, and give it the name",
        )
    digest = version.text("digest")
    snapshot.run(
        "UPDATE aliases SET version = ?, changed = ? WHERE tenant = ? AND name = ?",
        previous,
        change.time,
        tenant,
        name,
    )
    _log(change, "rollback", row, tenant, name, digest, version.integer("number"))
    return digest


def take_name(change: Change, tenant: str, name: str) -> str:
    """Let `name` stand for nothing; returns the digest that it stood for.

    Raises:
        AdapterError: no such name.
    """
    row = _own(change.snapshot, tenant, name)
    digest = row.text("digest")
    change.snapshot.run("DELETE FROM aliases WHERE tenant = ? AND name = ?", tenant, name)
    before = {"digest": digest, "version": row.integer("number")}
    change.log("remove", tenant=tenant, subject=name, before=before)
    return digest


def find_history(snapshot: Snapshot, tenant: str, name: str) -> list[NameVersion]:
    """The versions of a name, newest first, also of one that was removed.

    Raises:
        AdapterError: there never was such a name.
    """
    rows = snapshot.rows(
        "SELECT v.*, p.number AS before, a.version AS current, h.digest AS held FROM versions v "
        "LEFT JOIN versions p ON p.id = v.previous "
        "LEFT JOIN aliases a ON a.version = v.id "
        "LEFT JOIN holdings h ON h.tenant = v.tenant AND h.digest = v.digest "
        "WHERE v.tenant = ? AND v.name = ? ORDER BY v.number DESC",
        tenant,
        name,
    )
    if not rows:
        _own(snapshot, tenant, name)
    return [
        NameVersion(
            number=row.integer("number"),
            digest=row.text("digest"),
            previous=row.integer_or_none("before"),
            created=row.text("created"),
            actor=row.text("actor"),
            is_current=row.integer_or_none("current") is not None,
            is_here=row.text_or_none("held") is not None,
        )
        for row in rows
    ]


def reached(snapshot: Snapshot, *, keep: int) -> set[tuple[str, str]]:
    """(tenant, digest) of what names stand for, and of what a rollback may go to.

    Args:
        snapshot: to look in.
        keep: how many versions besides the current one a name keeps: the way that rollbacks
            take from it, and the newest, which a rollback has left.
    """
    found: set[tuple[str, str]] = set()
    names: dict[tuple[str, str], list[Fields]] = {}
    current: dict[tuple[str, str], int] = {
        (row.text("tenant"), row.text("name")): row.integer("version")
        for row in snapshot.rows("SELECT * FROM aliases")
    }
    for row in snapshot.rows("SELECT * FROM versions ORDER BY number DESC"):
        names.setdefault((row.text("tenant"), row.text("name")), []).append(row)
    for key, version in current.items():
        for row in _kept(names.get(key, ()), version, keep):
            found.add((key[0], row.text("digest")))
    return found


def _kept(versions: Sequence[Fields], current: int, keep: int) -> list[Fields]:
    by_id = {row.integer("id"): row for row in versions}
    kept = [row for row in versions[:keep] if row.integer("id") > current]
    at: int | None = current
    for _ in range(keep + 1):
        if at is None or at not in by_id:
            break
        kept.append(by_id[at])
        at = by_id[at].integer_or_none("previous")
    return kept
