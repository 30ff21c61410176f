"""Names to adapters, as each tenant sees them at this instant.

A name is resolved when a request arrives, and from then on the request knows only the digest: an
alias may change under a running server, and what runs stays with what it began with.

What a tenant sees is one dictionary. Whatever is not in it does not exist for that tenant, so
another's adapter and a name that nobody has are the same look-up with the same outcome.
"""

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from ince.errors import AdapterError, InputError
from ince.formats.adapter import (
    ADAPTER_FILES,
    CONFIG_FILE,
    adapter_digest,
    read_adapter,
    read_base_digest,
    write_adapter,
)

__all__ = ["AdapterShelf", "FolderDirectory", "ModelDirectory", "NamedAdapter", "contained_folder"]

_MAX_HISTORY = 100
_MAX_NAME_CHARACTERS = 128


@dataclass(frozen=True)
class NamedAdapter:
    """An adapter under one of its names.

    Attributes:
        name: as requests say it.
        digest: of its files.
        created: when the name came to mean it, in seconds since 1970.
        tenant: whose it is; empty for everybody's.
    """

    name: str
    digest: str
    created: int
    tenant: str = ""


class ModelDirectory(Protocol):
    """What the routes ask; quick, since it is asked on the event loop."""

    def adapters(self, tenant: str) -> Mapping[str, NamedAdapter]:
        """Everything that the tenant may use, by name."""
        ...

    def may_use_base(self, tenant: str) -> bool:
        """Whether the tenant may ask the base itself."""
        ...

    def names_of(self, digests: Iterable[str]) -> list[str]:
        """Names that adapters go by, of all tenants; a digest stands for itself without one."""
        ...


class AdapterShelf(Protocol):
    """Changes to the directory. May take time: not for the event loop."""

    def acting(self, actor: str) -> "AdapterShelf":
        """The same, with changes made in the name of `actor`."""
        ...

    def put(self, folder: Path, *, tenant: str = "") -> str:
        """Take an adapter in, without a name; its digest."""
        ...

    def keep(self, folder: Path, *, name: str, tenant: str = "") -> str:
        """Take a copy of an adapter in that will be called `name`; its digest."""
        ...

    def current(self, name: str, *, tenant: str = "") -> NamedAdapter | None:
        """What `name` means; not what a tenant may use, but what is its own."""
        ...

    def alias(self, name: str, digest: str, *, tenant: str = "") -> None:
        """Let `name` mean an adapter from now on."""
        ...

    def rollback(self, name: str, *, tenant: str = "") -> str:
        """Let `name` mean what it meant before; the digest of that."""
        ...

    def history(self, name: str, *, tenant: str = "") -> list[NamedAdapter]:
        """What `name` means and has meant, newest first."""
        ...

    def remove(self, name: str, *, tenant: str = "") -> str:
        """Take the name away; the digest it had."""
        ...


def contained_folder(root: Path | None, path: str) -> Path:
    """The folder of an adapter beneath `root`; nothing outside of it, whatever `path` says.

    Raises:
        InputError: no folder may be named, or this one is outside or is no adapter. What is
            outside and what is not there are one answer, so that no path can be tried out.
    """
    if root is None:
        raise InputError(
            "this server loads no adapters by path",
            do="start it with --adapters DIR, or name an adapter of its registry",
        )
    refusal = InputError(
        "no such adapter in the server's folder of adapters",
        got=path,
        expected="the path of a folder beneath it",
    )
    if "\0" in path or len(path) > 4096:
        raise refusal
    try:
        inside = root.resolve(strict=True)
        folder = (inside / path).resolve(strict=True)
        files = [(folder / name).resolve(strict=True) for name in ADAPTER_FILES]
    except (OSError, RuntimeError, ValueError):
        raise refusal from None
    if folder == inside or not all(each.is_relative_to(inside) for each in (folder, *files)):
        raise refusal
    return folder


def check_name(name: str) -> None:
    """Refuse a name that could not be asked for, or that would disturb a log or a label.

    Raises:
        InputError: saying what a name is.
    """
    fine = 0 < len(name) <= _MAX_NAME_CHARACTERS and all(
        character.isalnum() or character in "._-:/@+" for character in name
    )
    if not fine or ".." in name or not name[0].isalnum():
        raise InputError(
            "not a name for an adapter",
            got=name,
            expected=f"at most {_MAX_NAME_CHARACTERS} letters, digits and . _ - : / @ +",
        )


class FolderDirectory:
    """Adapters of one folder, each a folder in it that is named as requests name it.

    Without a registry names last as long as the server: the folder is read at the start, and what
    is loaded later is gone with the process. It is an `AdapterSource` as well.
    """

    def __init__(self, root: Path | None) -> None:
        self._lock = threading.Lock()
        self._root = root
        self._folders: dict[str, Path] = {}
        self._names: dict[str, list[NamedAdapter]] = {}
        self._view: dict[str, NamedAdapter] = {}

    def scan(self) -> list[str]:
        """Take in every adapter of the folder; their names.

        Raises:
            InputError: there is no such folder.
            AdapterError: a folder has a config and no weights.
        """
        if self._root is None:
            return []
        if not self._root.is_dir():
            raise InputError("no such folder of adapters", where=self._root)
        found: list[str] = []
        for folder in sorted(self._root.iterdir()):
            if (folder / CONFIG_FILE).is_file():
                check_name(folder.name)
                self.alias(folder.name, self.put(contained_folder(self._root, folder.name)))
                found.append(folder.name)
        return found

    def folder(self, digest: str) -> Path:
        """Where an adapter's files are.

        Raises:
            AdapterError: nowhere.
        """
        folder = self._folders.get(digest)
        if folder is None:
            raise AdapterError("no such adapter", got=digest)
        return folder

    def adapters(self, tenant: str) -> Mapping[str, NamedAdapter]:  # noqa: ARG002 - one view for all
        """Everything."""
        return self._view

    def may_use_base(self, tenant: str) -> bool:  # noqa: ARG002 - one view for all
        """Yes."""
        return True

    def names_of(self, digests: Iterable[str]) -> list[str]:
        """See `ModelDirectory`."""
        wanted = set(digests)
        named = {each.name: each.digest for each in self._view.values() if each.digest in wanted}
        return [*named, *(wanted - set(named.values()))]

    def acting(self, actor: str) -> "AdapterShelf":  # noqa: ARG002 - nothing is written down
        """See `AdapterShelf`."""
        return self

    def keep(self, folder: Path, *, name: str, tenant: str = "") -> str:
        """See `AdapterShelf`; the copy lies in the folder of adapters, and is there next time."""
        self._check_tenant(tenant)
        if self._root is None:
            raise InputError("there is no folder of adapters", do="start with --adapters DIR")
        config, tensors = read_adapter(folder)
        digest = adapter_digest(folder)
        place = self._root / name.replace("/", "-")
        if place.exists():
            place = place.with_name(f"{place.name}-{digest[:12]}")
        if not place.exists():
            write_adapter(place, config, tensors, base_digest=read_base_digest(folder))
        return self.put(contained_folder(self._root, place.name))

    def current(self, name: str, *, tenant: str = "") -> NamedAdapter | None:
        """See `AdapterShelf`."""
        self._check_tenant(tenant)
        return self._view.get(name)

    def put(self, folder: Path, *, tenant: str = "") -> str:
        """See `AdapterShelf`; the files stay where they are."""
        self._check_tenant(tenant)
        digest = adapter_digest(folder)
        self._folders[digest] = folder
        return digest

    def alias(self, name: str, digest: str, *, tenant: str = "") -> None:
        """See `AdapterShelf`."""
        self._check_tenant(tenant)
        check_name(name)
        self.folder(digest)
        with self._lock:
            past = self._names.setdefault(name, [])
            if not past or past[0].digest != digest:
                past.insert(0, NamedAdapter(name, digest, int(time.time())))
                del past[_MAX_HISTORY:]
            self._show()

    def rollback(self, name: str, *, tenant: str = "") -> str:
        """See `AdapterShelf`."""
        past = self.history(name, tenant=tenant)
        if len(past) < 2:
            raise InputError("the name has meant nothing else before", got=name)
        with self._lock:
            self._names[name] = [replace(past[1], created=int(time.time())), *past[2:]]
            self._show()
        return past[1].digest

    def history(self, name: str, *, tenant: str = "") -> list[NamedAdapter]:
        """See `AdapterShelf`."""
        self._check_tenant(tenant)
        with self._lock:
            past = list(self._names.get(name, ()))
        if not past:
            raise InputError("no such adapter", got=name)
        return past

    def remove(self, name: str, *, tenant: str = "") -> str:
        """See `AdapterShelf`."""
        digest = self.history(name, tenant=tenant)[0].digest
        with self._lock:
            self._names.pop(name, None)
            self._show()
        return digest

    def _show(self) -> None:
        # A new dictionary each time: whoever looks at the old one sees a whole view.
        self._view = {name: past[0] for name, past in self._names.items()}

    def _check_tenant(self, tenant: str) -> None:
        if tenant:
            raise InputError(
                "a folder of adapters has no tenants",
                got=tenant,
                do="serve a registry: ince serve BASE --registry DIR",
            )
