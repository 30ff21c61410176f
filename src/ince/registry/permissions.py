"""Which names a tenant may use: its own, and those of the shared ones that it is allowed."""

from collections.abc import Collection

from ince.registry.aliases import find_aliases, find_name
from ince.registry.database import Snapshot
from ince.registry.names import SHARED

__all__ = ["allowed_patterns", "may_use", "permits", "visible_names"]


def permits(pattern: str, name: str) -> bool:
    """Whether ``*``, ``team/*`` or a name permits `name`."""
    if pattern.endswith("*"):
        return name.startswith(pattern[:-1])
    return name == pattern


def allowed_patterns(snapshot: Snapshot, tenant: str) -> tuple[str, ...]:
    """What of the shared names a tenant is allowed; of an unknown tenant nothing."""
    if tenant == SHARED:
        return ("*",)
    admin = snapshot.row("SELECT is_admin FROM tenants WHERE name = ?", tenant)
    if admin is not None and admin.integer("is_admin"):
        return ("*",)
    rows = snapshot.rows(
        "SELECT pattern FROM permissions WHERE tenant = ? ORDER BY pattern", tenant
    )
    return tuple(row.text("pattern") for row in rows)


def _any(patterns: Collection[str], name: str) -> bool:
    return any(permits(pattern, name) for pattern in patterns)


def may_use(snapshot: Snapshot, tenant: str, name: str) -> bool:
    """Whether `name`, of an adapter or of the base, is the tenant's own or allowed to it."""
    own = tenant != SHARED and find_name(snapshot, tenant, name) is not None
    return own or _any(allowed_patterns(snapshot, tenant), name)


def visible_names(snapshot: Snapshot, tenant: str, *, name: str | None = None) -> dict[str, str]:
    """Names that a tenant may use, with digests; of all of them, or of `name` alone.

    The tenant's own name hides a shared one.
    """
    patterns = allowed_patterns(snapshot, tenant)
    found: dict[str, str] = {}
    for whose in dict.fromkeys((SHARED, tenant)):
        if name is None:
            aliases = find_aliases(snapshot, tenant=whose)
        else:
            one = find_name(snapshot, whose, name)
            aliases = [] if one is None else [one]
        for alias in aliases:
            if whose != SHARED or _any(patterns, alias.name):
                found[alias.name] = alias.digest
    return dict(sorted(found.items()))
