"""A registry as the routes see it: names by tenant, keys, and changes.

The registry has a number that grows with every change, whichever process makes it. Asking for it
is one small read, made at each request; what tenants see is kept until it changes. So a name means
what it was last given, on the next request, and nothing is read twice.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path

from ince.registry import SHARED, Registry
from ince.registry import Usage as UsedUp
from ince.serve.http.directory import AdapterShelf, NamedAdapter
from ince.serve.http.tenants import Caller, Usage

__all__ = ["RegistryShelf", "RegistryTenants", "RegistryView"]

_MAX_KEYS = 10_000


@dataclass(frozen=True)
class _Names:
    """What a tenant sees."""

    adapters: Mapping[str, NamedAdapter]
    may_use_base: bool


def _seconds(text: str) -> int:
    try:
        return int(datetime.fromisoformat(text).timestamp())
    except ValueError:
        return 0


class RegistryView:
    """Names of a registry, as a `ModelDirectory`.

    Args:
        registry: open.
        base_name: that tenants may be allowed, as any other name.
    """

    def __init__(self, registry: Registry, base_name: str) -> None:
        self._registry = registry
        self._base_name = base_name
        self._version = -1
        self._names: dict[str, _Names] = {}

    def _see(self, tenant: str) -> _Names:
        version = self._registry.version()
        if version != self._version:
            self._version, self._names = version, {}
        found = self._names.get(tenant)
        if found is None:
            found = self._names[tenant] = self._read(tenant)
        return found

    def _read(self, tenant: str) -> _Names:
        own = {(each.tenant, each.name): each for each in self._registry.names()}
        adapters: dict[str, NamedAdapter] = {}
        for name, digest in self._registry.visible(tenant).items():
            alias = own.get((tenant, name)) or own.get((SHARED, name))
            adapters[name] = NamedAdapter(
                name,
                digest,
                0 if alias is None else _seconds(alias.changed),
                SHARED if alias is None else alias.tenant,
            )
        return _Names(adapters, self._registry.tenants.may_use(tenant, self._base_name))

    def adapters(self, tenant: str) -> Mapping[str, NamedAdapter]:
        """See `ModelDirectory`."""
        return self._see(tenant).adapters

    def may_use_base(self, tenant: str) -> bool:
        """See `ModelDirectory`."""
        return self._see(tenant).may_use_base

    def names_of(self, digests: Iterable[str]) -> list[str]:
        """See `ModelDirectory`; a tenant's own names begin with whose they are."""
        wanted = set(digests)
        if not wanted:
            return []
        found: dict[str, str] = {}
        for alias in self._registry.names():
            if alias.digest in wanted:
                whose = f"{alias.tenant}:" if alias.tenant else ""
                found[f"{whose}{alias.name}"] = alias.digest
        return [*found, *(wanted - set(found.values()))]


class RegistryShelf:
    """Changes to a registry, as an `AdapterShelf`."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def acting(self, actor: str) -> AdapterShelf:
        """See `AdapterShelf`; the name stands in the audit log."""
        return RegistryShelf(self._registry.as_actor(f"server: {actor or 'local'}"))

    def put(self, folder: Path, *, tenant: str = "") -> str:
        """See `AdapterShelf`; the files are copied."""
        return self._registry.put(folder, tenant=tenant)

    def keep(self, folder: Path, *, name: str, tenant: str = "") -> str:  # noqa: ARG002
        """See `AdapterShelf`."""
        return self._registry.put(folder, tenant=tenant)

    def alias(self, name: str, digest: str, *, tenant: str = "") -> None:
        """See `AdapterShelf`."""
        self._registry.alias(name, digest, tenant=tenant)

    def rollback(self, name: str, *, tenant: str = "") -> str:
        """See `AdapterShelf`."""
        return self._registry.rollback(name, tenant=tenant)

    def current(self, name: str, *, tenant: str = "") -> NamedAdapter | None:
        """See `AdapterShelf`."""
        for alias in self._registry.names(tenant=tenant):
            if alias.name == name:
                return NamedAdapter(name, alias.digest, _seconds(alias.changed), tenant)
        return None

    def history(self, name: str, *, tenant: str = "") -> list[NamedAdapter]:
        """See `AdapterShelf`."""
        return [
            NamedAdapter(name, each.digest, _seconds(each.created), tenant)
            for each in self._registry.history(name, tenant=tenant)
        ]

    def remove(self, name: str, *, tenant: str = "") -> str:
        """See `AdapterShelf`."""
        return self._registry.remove(name, tenant=tenant)


class RegistryTenants:
    """Keys and accounts of a registry, as `Tenants`.

    Args:
        registry: open.
        wants_keys: from the start, whatever becomes of the tenants. Else from the first tenant on:
            whoever adds one expects that nobody goes past it, and waits for no restart.
    """

    def __init__(self, registry: Registry, *, wants_keys: bool = True) -> None:
        self._registry = registry
        self._wants_keys = wants_keys
        self._without_tenants = -1  # the registry's version when it was seen to have none
        self._weights: tuple[int, dict[str, float]] = (-1, {})
        self._version = -1
        self._known: OrderedDict[bytes, Caller] = OrderedDict()

    def wants_keys(self) -> bool:
        """See `Tenants`."""
        if not self._wants_keys and (version := self._registry.version()) != self._without_tenants:
            self._wants_keys = bool(self._registry.tenants.tenants())
            self._without_tenants = version
        return self._wants_keys

    def weights(self) -> Mapping[str, float]:
        """See `Tenants`; read anew when the registry has changed."""
        version = self._registry.version()
        if version != self._weights[0]:
            found = {each.name: each.weight for each in self._registry.tenants.tenants()}
            self._weights = (version, found)
        return self._weights[1]

    def known(self, secret: str) -> Caller | None:
        """The tenant of a key that was right since the registry last changed; quick."""
        version = self._registry.version()
        if version != self._version:
            self._version = version
            self._known.clear()
        return self._known.get(_mark(secret))

    def authenticate(self, secret: str) -> Caller | None:
        """See `Tenants`."""
        version = self._registry.version()
        found = self._registry.tenants.authenticate(secret)
        if found is None:
            return None
        caller = Caller(
            found.name,
            is_admin=found.is_admin,
            requests_per_minute=found.requests_per_minute,
            tokens_per_minute=found.tokens_per_minute,
            max_concurrent=found.max_concurrent,
        )
        if version == self._version:  # else it may have been revoked while it was checked
            self._known[_mark(secret)] = caller
            while len(self._known) > _MAX_KEYS:
                self._known.popitem(last=False)
        return caller

    def record_usage(self, used: Sequence[Usage]) -> None:
        """See `Tenants`; of a tenant that was removed meanwhile nothing is kept."""
        there = {each.name for each in self._registry.tenants.tenants()}
        self._registry.tenants.add_usage(
            *(
                UsedUp(
                    each.tenant,
                    each.adapter,
                    each.prompt_tokens,
                    each.completion_tokens,
                    each.requests,
                )
                for each in used
                if each.tenant in there
            )
        )


def _mark(secret: str) -> bytes:
    return sha256(secret.encode("utf-8", "surrogatepass")).digest()
