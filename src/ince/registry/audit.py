"""The audit log: every change with time, actor, action, before and after.

A row is written in the transaction of its change, so that neither is there without the other.
The database refuses to alter or remove rows; and each carries a digest over itself and all
before it, so that a log which was edited by other means no longer adds up.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from ince.files import sha256_bytes
from ince.registry.database import Database, Fields, Snapshot

__all__ = [
    "AuditRecord",
    "Change",
    "Ledger",
    "broken_links",
    "current_version",
    "now",
    "read_audit",
]


def now() -> str:
    """The time, ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


@dataclass(frozen=True)
class AuditRecord:
    """One change."""

    id: int
    time: str
    actor: str
    action: str
    """Such as ``put``, ``alias``, ``rollback``, ``gc``, ``key revoke``."""
    tenant: str
    subject: str
    """A name, a digest or the id of a key."""
    before: dict[str, object] | None
    after: dict[str, object] | None

    def to_dict(self) -> dict[str, object]:
        """As a JSON-ready object."""
        return asdict(self)


@dataclass(frozen=True)
class Change:
    """A write transaction, and who makes it."""

    snapshot: Snapshot
    actor: str
    time: str

    def log(
        self,
        action: str,
        *,
        tenant: str,
        subject: str,
        before: Mapping[str, object] | None = None,
        after: Mapping[str, object] | None = None,
    ) -> None:
        """Append to the audit log."""
        last = self.snapshot.row("SELECT id, chain FROM audit ORDER BY id DESC LIMIT 1")
        row = (
            1 if last is None else last.integer("id") + 1,
            self.time,
            self.actor,
            action,
            tenant,
            subject,
            None if before is None else json.dumps(before, sort_keys=True),
            None if after is None else json.dumps(after, sort_keys=True),
        )
        chain = _link("" if last is None else last.text("chain"), row)
        self.snapshot.run("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", *row, chain)


@dataclass(frozen=True)
class Ledger:
    """A database, and in whose name it is changed."""

    database: Database
    actor: str

    @contextlib.contextmanager
    def reading(self) -> Iterator[Snapshot]:
        """One snapshot of the database."""
        with self.database.reading() as snapshot:
            yield snapshot

    @contextlib.contextmanager
    def changing(self) -> Iterator[Change]:
        """One transaction; what it changes it is to log."""
        with self.database.changing() as snapshot:
            yield Change(snapshot, self.actor, now())


def _link(chain: str, row: tuple[object, ...]) -> str:
    return sha256_bytes(f"{chain}\n{json.dumps(row)}".encode())


def _record(row: Fields) -> AuditRecord:
    return AuditRecord(
        id=row.integer("id"),
        time=row.text("time"),
        actor=row.text("actor"),
        action=row.text("action"),
        tenant=row.text("tenant"),
        subject=row.text("subject"),
        before=row.json_or_none("before"),
        after=row.json_or_none("after"),
    )


def read_audit(snapshot: Snapshot, *, last: int, after_id: int) -> list[AuditRecord]:
    """The latest `last` changes after the one of `after_id`, oldest first."""
    rows = snapshot.rows(
        "SELECT * FROM audit WHERE id > ? ORDER BY id DESC LIMIT ?", after_id, last
    )
    return [_record(row) for row in reversed(rows)]


def current_version(snapshot: Snapshot) -> int:
    """A number that grows with every change."""
    row = snapshot.row("SELECT coalesce(max(id), 0) AS version FROM audit")
    return 0 if row is None else row.integer("version")


def broken_links(snapshot: Snapshot) -> Iterator[int]:
    """The ids of rows that are not what was appended there."""
    columns = ("time", "actor", "action", "tenant", "subject")
    chain, expected_id = "", 1
    for row in snapshot.rows("SELECT * FROM audit ORDER BY id"):
        values = (
            row.integer("id"),
            *map(row.text, columns),
            row.text_or_none("before"),
            row.text_or_none("after"),
        )
        own = row.text("chain")
        if values[0] != expected_id or _link(chain, values) != own:
            yield row.integer("id")
        chain, expected_id = own, row.integer("id") + 1
