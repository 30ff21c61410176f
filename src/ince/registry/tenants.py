"""`Tenants`: who may use which adapters, how much, and with which keys.

A tenant without a limit has none. It may use its own adapters and, of the shared ones, what it
is allowed; nothing is allowed at first. Usage is counted by tenant, day and adapter, and is no
change: it is not in the audit log.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ince.errors import InputError, did_you_mean
from ince.registry.audit import Change, Ledger
from ince.registry.database import Fields, Snapshot
from ince.registry.keys import Key, KeyCheck, key_id, new_secret
from ince.registry.limits import LIMITS, check_limits
from ince.registry.names import SHARED, check_pattern, check_tenant
from ince.registry.permissions import allowed_patterns, may_use
from ince.registry.usage import Usage, count, counted

__all__ = ["Tenant", "Tenants"]

_MAX_LABEL = 200


@dataclass(frozen=True)
class Tenant:
    """Somebody with keys, and what they may take."""

    name: str
    requests_per_minute: int | None
    tokens_per_minute: int | None
    max_concurrent: int | None
    max_adapters: int | None
    max_bytes: int | None
    weight: float
    """Of its share where tenants compete."""
    is_admin: bool
    """May load and publish adapters, and use all shared ones."""
    created: str
    allowed: tuple[str, ...]
    """Of the shared names: names, ``team/*`` or ``*``."""

    def to_dict(self) -> dict[str, object]:
        """As a JSON-ready object."""
        return asdict(self)


class Tenants:
    """The tenants of a registry, their keys, permissions and usage."""

    def __init__(self, ledger: Ledger, like: "Tenants | None" = None) -> None:
        self._ledger = ledger
        self._check = KeyCheck() if like is None else like._check

    def add_tenant(
        self,
        name: str,
        *,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        max_concurrent: int | None = None,
        weight: float = 1.0,
        max_adapters: int | None = None,
        max_bytes: int | None = None,
        is_admin: bool = False,
        allow: Iterable[str] = (),
    ) -> Tenant:
        """Add a tenant; it has no key yet.

        Raises:
            InputError: there is one of this name, or a name or limit cannot be.
        """
        if check_tenant(name) == SHARED:
            raise InputError("a tenant needs a name")
        limits: dict[str, Any] = {
            "requests_per_minute": requests_per_minute,
            "tokens_per_minute": tokens_per_minute,
            "max_concurrent": max_concurrent,
            "max_adapters": max_adapters,
            "max_bytes": max_bytes,
            "weight": weight,
            "is_admin": is_admin,
        }
        check_limits(limits)
        patterns = [check_pattern(pattern) for pattern in allow]
        with self._ledger.changing() as change:
            if _find(change.snapshot, name) is not None:
                raise InputError(
                    "there is a tenant of this name",
                    got=name,
                    do=f"change it: ince registry tenant change {name}",
                )
            columns = ", ".join(("name", "created", *limits))
            change.snapshot.run(
                f"INSERT INTO tenants ({columns}) VALUES (?, ?{', ?' * len(limits)})",
                name,
                change.time,
                *limits.values(),
            )
            for pattern in dict.fromkeys(patterns):
                change.snapshot.run("INSERT INTO permissions VALUES (?, ?)", name, pattern)
            tenant = _get(change.snapshot, name)
            change.log("tenant add", tenant=name, subject=name, after=tenant.to_dict())
        return tenant

    def change_tenant(self, name: str, changes: Mapping[str, int | float | bool | None]) -> Tenant:
        """Set limits of a tenant, by their names; None takes one away.

        Raises:
            InputError: no such tenant, or no such limit.
        """
        check_limits(changes)
        with self._ledger.changing() as change:
            before = _get(change.snapshot, name)
            for column, value in changes.items():
                assert column in LIMITS
                change.snapshot.run(f"UPDATE tenants SET {column} = ? WHERE name = ?", value, name)
            return _note(change, "tenant change", before)

    def remove_tenant(self, name: str) -> None:
        """Remove a tenant with its keys, permissions, usage and history of names.

        Raises:
            InputError: no such tenant, or its adapters still have names.
        """
        with self._ledger.changing() as change:
            snapshot = change.snapshot
            before = _get(snapshot, name)
            left = snapshot.row("SELECT count(*) AS num FROM aliases WHERE tenant = ?", name)
            if left is not None and left.integer("num"):
                raise InputError(
                    "the tenant's adapters still have names",
                    where=name,
                    got=f"{left.integer('num')} names",
                    do=f"see: ince registry list --tenant {name}; and remove them first",
                )
            used = counted(snapshot, name, None)
            for table in ("permissions", "keys", "usage", "versions", "holdings"):
                snapshot.run(f"DELETE FROM {table} WHERE tenant = ?", name)
            snapshot.run("DELETE FROM tenants WHERE name = ?", name)
            totals = {
                "prompt_tokens": sum(each.prompt_tokens for each in used),
                "completion_tokens": sum(each.completion_tokens for each in used),
            }
            state = {**before.to_dict(), "usage": totals}
            change.log("tenant remove", tenant=name, subject=name, before=state)

    def tenant(self, name: str) -> Tenant:
        """A tenant.

        Raises:
            InputError: there is none of this name.
        """
        with self._ledger.reading() as snapshot:
            return _get(snapshot, name)

    def tenants(self) -> list[Tenant]:
        """All, by name."""
        with self._ledger.reading() as snapshot:
            rows = snapshot.rows("SELECT * FROM tenants ORDER BY name")
            return [_tenant(row, snapshot) for row in rows]

    def allow(self, tenant: str, pattern: str) -> Tenant:
        """Let a tenant use a shared name; ``team/*`` all that begin so, ``*`` all.

        Raises:
            InputError: no such tenant, or nothing can have this name.
        """
        check_pattern(pattern)
        with self._ledger.changing() as change:
            before = _get(change.snapshot, tenant)
            change.snapshot.run(
                "INSERT INTO permissions VALUES (?, ?) ON CONFLICT DO NOTHING", tenant, pattern
            )
            return _note(change, "allow", before)

    def disallow(self, tenant: str, pattern: str) -> Tenant:
        """Take back what `allow` gave.

        Raises:
            InputError: no such tenant, or it was not given.
        """
        with self._ledger.changing() as change:
            before = _get(change.snapshot, tenant)
            if pattern not in before.allowed:
                raise InputError(
                    "the tenant was not allowed this",
                    got=pattern,
                    expected=", ".join(before.allowed) or "nothing is allowed",
                    do=did_you_mean(pattern, before.allowed),
                )
            change.snapshot.run(
                "DELETE FROM permissions WHERE tenant = ? AND pattern = ?", tenant, pattern
            )
            return _note(change, "disallow", before)

    def may_use(self, tenant: str, name: str) -> bool:
        """Whether a name, of an adapter or the base, is the tenant's own or allowed to it."""
        with self._ledger.reading() as snapshot:
            return may_use(snapshot, tenant, name)

    def add_key(self, tenant: str, *, label: str = "") -> str:
        """Make a key; returns it, which is the only time that it is shown.

        Raises:
            InputError: no such tenant, or argon2-cffi is not installed.
        """
        if len(label) > _MAX_LABEL or not label.isprintable():
            raise InputError("a label is one short line", got=label)
        secret = new_secret()
        own_id, kept = key_id(secret), self._check.hash(secret)
        assert own_id is not None
        with self._ledger.changing() as change:
            _get(change.snapshot, tenant)
            change.snapshot.run(
                "INSERT INTO keys VALUES (?, ?, ?, ?, ?, NULL)",
                own_id,
                tenant,
                kept,
                label,
                change.time,
            )
            change.log("key add", tenant=tenant, subject=own_id, after={"label": label})
        return secret

    def revoke_key(self, key: str) -> Key:
        """End a key, by its id (or by itself). It stays in the list.

        Raises:
            InputError: there is none.
        """
        own_id = key_id(key) or key
        with self._ledger.changing() as change:
            row = change.snapshot.row("SELECT * FROM keys WHERE id = ?", own_id)
            if row is None:
                known = [each.text("id") for each in change.snapshot.rows("SELECT id FROM keys")]
                raise InputError(
                    "no such key",
                    got=own_id,
                    do=did_you_mean(own_id, known) or "see: ince registry key list",
                )
            before = _key(row)
            if before.revoked is None:
                change.snapshot.run("UPDATE keys SET revoked = ? WHERE id = ?", change.time, own_id)
                state = {"label": before.label}
                change.log("key revoke", tenant=before.tenant, subject=own_id, before=state)
            row = change.snapshot.row("SELECT * FROM keys WHERE id = ?", own_id)
            assert row is not None
            return _key(row)

    def keys(self, *, tenant: str | None = None) -> list[Key]:
        """All keys, or a tenant's, revoked ones too; oldest first."""
        with self._ledger.reading() as snapshot:
            rows = snapshot.rows(
                "SELECT * FROM keys WHERE ? IS NULL OR tenant = ? ORDER BY created", tenant, tenant
            )
            return [_key(row) for row in rows]

    def authenticate(self, secret: str) -> Tenant | None:
        """The tenant whose key this is, or None.

        What is wrong, unknown, revoked or no key at all takes one hash (some 20 ms), as a right
        key does at its first use; call it where that does not hold up others.

        Raises:
            InputError: argon2-cffi is not installed.
        """
        own_id = key_id(secret) or ""
        with self._ledger.reading() as snapshot:
            row = snapshot.row("SELECT * FROM keys WHERE id = ? AND revoked IS NULL", own_id)
            tenant = None if row is None else _find(snapshot, row.text("tenant"))
        kept = None if row is None or tenant is None else row.text("hash")
        return tenant if self._check.is_right(secret, kept) else None

    def add_usage(self, *used: Usage) -> None:
        """Count what requests took, in one transaction.

        Raises:
            InputError: a count is negative.
        """
        with self._ledger.database.changing() as snapshot:
            count(snapshot, used)

    def usage(self, tenant: str | None = None, *, since: str | None = None) -> list[Usage]:
        """What was used, by tenant, day and adapter; from the day `since` on."""
        with self._ledger.reading() as snapshot:
            return counted(snapshot, tenant, since)


def _note(change: Change, action: str, before: Tenant) -> Tenant:
    after = _get(change.snapshot, before.name)
    if after != before:
        change.log(
            action,
            tenant=before.name,
            subject=before.name,
            before=before.to_dict(),
            after=after.to_dict(),
        )
    return after


def _tenant(row: Fields, snapshot: Snapshot) -> Tenant:
    return Tenant(
        name=row.text("name"),
        requests_per_minute=row.integer_or_none("requests_per_minute"),
        tokens_per_minute=row.integer_or_none("tokens_per_minute"),
        max_concurrent=row.integer_or_none("max_concurrent"),
        max_adapters=row.integer_or_none("max_adapters"),
        max_bytes=row.integer_or_none("max_bytes"),
        weight=row.real("weight"),
        is_admin=bool(row.integer("is_admin")),
        created=row.text("created"),
        allowed=allowed_patterns(snapshot, row.text("name")),
    )


def _find(snapshot: Snapshot, name: str) -> Tenant | None:
    row = snapshot.row("SELECT * FROM tenants WHERE name = ?", name)
    return None if row is None else _tenant(row, snapshot)


def _get(snapshot: Snapshot, name: str) -> Tenant:
    found = _find(snapshot, name)
    if found is None:
        known = [row.text("name") for row in snapshot.rows("SELECT name FROM tenants")]
        raise InputError(
            "no such tenant",
            got=name,
            do=did_you_mean(name, known) or "see: ince registry tenant list",
        )
    return found


def _key(row: Fields) -> Key:
    return Key(
        id=row.text("id"),
        tenant=row.text("tenant"),
        label=row.text("label"),
        created=row.text("created"),
        revoked=row.text_or_none("revoked"),
    )
