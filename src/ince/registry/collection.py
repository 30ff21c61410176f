"""Taking out what no name reaches, and checking that what is there is what was put.

Rows go first, in one transaction; folders after. A process that is killed in between leaves
folders without a row, which the next collection finds. Content that a row names is never
touched, nor what a rollback may go to.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta

from ince.registry.aliases import reached
from ince.registry.audit import Change, broken_links
from ince.registry.content import ContentStore
from ince.registry.database import Snapshot

__all__ = [
    "Collected",
    "Verified",
    "damaged_content",
    "drop_unreached",
    "find_problems",
    "unlisted",
    "unreached",
]


@dataclass(frozen=True)
class Collected:
    """What a collection took out, or would."""

    digests: tuple[str, ...]
    """Of adapters that nobody holds any more."""
    num_bytes: int
    """That they took."""
    num_kept: int
    leftovers: tuple[str, ...]
    """Digests of folders that processes which were killed left without a row."""
    swept: bool
    """Whether half-made copies could be cleared: not while one is being made."""

    def to_dict(self) -> dict[str, object]:
        """As a JSON-ready object."""
        return asdict(self)


@dataclass(frozen=True)
class Verified:
    """What a check of the whole registry found."""

    num_adapters: int
    num_bytes: int
    num_names: int
    num_changes: int
    problems: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """As a JSON-ready object."""
        return asdict(self)


def unreached(snapshot: Snapshot, *, keep: int, min_age_seconds: float) -> list[tuple[str, str]]:
    """(tenant, digest) of holdings that no name reaches.

    What never had a name is kept while it is younger than `min_age_seconds`: it may be about to
    get one.
    """
    young = (datetime.now(UTC) - timedelta(seconds=min_age_seconds)).isoformat()
    kept = reached(snapshot, keep=keep)
    rows = snapshot.rows(
        "SELECT h.tenant, h.digest, h.created, EXISTS (SELECT 1 FROM versions v "
        "WHERE v.tenant = h.tenant AND v.digest = h.digest) AS was_named "
        "FROM holdings h ORDER BY h.created"
    )
    found = [
        (row.text("tenant"), row.text("digest"))
        for row in rows
        if row.integer("was_named") or row.text("created") < young
    ]
    return [each for each in found if each not in kept]


def drop_unreached(change: Change, *, keep: int, min_age_seconds: float) -> list[str]:
    """Drop those holdings; returns the digests that nobody holds any more, whose rows go too."""
    snapshot = change.snapshot
    for tenant, digest in unreached(snapshot, keep=keep, min_age_seconds=min_age_seconds):
        row = snapshot.row(
            "SELECT lineage FROM holdings WHERE tenant = ? AND digest = ?", tenant, digest
        )
        snapshot.run("DELETE FROM holdings WHERE tenant = ? AND digest = ?", tenant, digest)
        before = {"lineage": None if row is None else row.json_or_none("lineage")}
        change.log("gc", tenant=tenant, subject=digest, before=before)
    gone = [
        row.text("digest")
        for row in snapshot.rows(
            "SELECT digest FROM adapters WHERE digest NOT IN (SELECT digest FROM holdings)"
        )
    ]
    snapshot.run_many("DELETE FROM adapters WHERE digest = ?", [(digest,) for digest in gone])
    return gone


def unlisted(snapshot: Snapshot, content: ContentStore) -> set[str]:
    """Digests of folders without a row."""
    return content.digests() - {
        row.text("digest") for row in snapshot.rows("SELECT digest FROM adapters")
    }


def find_problems(snapshot: Snapshot) -> list[str]:
    """What is not as it should be in the database, a line each."""
    problems: list[str] = []
    for row in snapshot.rows("PRAGMA integrity_check(20)"):
        text = row.text("integrity_check")
        if text != "ok":
            problems.append(f"database: {text}")
    problems += [
        f"database: a row of {row.text('table')} names one that is not there"
        for row in snapshot.rows("PRAGMA foreign_key_check")
    ]
    for row in snapshot.rows(
        "SELECT a.tenant, a.name, v.digest FROM aliases a JOIN versions v ON v.id = a.version "
        "LEFT JOIN holdings h ON h.tenant = a.tenant AND h.digest = v.digest "
        "WHERE h.digest IS NULL"
    ):
        name = f"{row.text('name')} of {row.text('tenant') or 'all tenants'}"
        problems.append(f"{name}: stands for {row.text('digest')}, which is not held")
    problems += [f"audit log: change {each} was altered" for each in broken_links(snapshot)]
    return problems


def damaged_content(content: ContentStore, digests: Iterable[str]) -> dict[str, str]:
    """What is wrong with the folders of `digests`; all of them are read."""
    problems: dict[str, str] = {}
    for digest in digests:
        if not content.path(digest).is_dir():
            problems[digest] = f"{digest}: its folder is gone"
        elif not content.is_whole(digest):
            problems[digest] = f"{digest}: its files are not what was put"
    return problems
