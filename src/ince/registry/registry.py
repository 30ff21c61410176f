"""`Registry`: adapters by content, under names, with a way back.

A folder that holds copies of adapters (`ince.registry.content`) and a database beside them
(`ince.registry.database`). Every method is safe in any thread, and beside other processes that
use the same folder; each change is one transaction with its row in the audit log.
"""

import contextlib
import getpass
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from ince.errors import AdapterError, InceError, InputError
from ince.registry.adapters import (
    AdapterEntry,
    find_entries,
    find_entry,
    hold,
    most_bytes,
    no_such_digest,
)
from ince.registry.aliases import (
    Alias,
    NameVersion,
    find_aliases,
    find_history,
    find_name,
    no_such_name,
    point,
    take_name,
    turn_back,
)
from ince.registry.audit import AuditRecord, Ledger, current_version, read_audit
from ince.registry.collection import (
    Collected,
    Verified,
    damaged_content,
    drop_unreached,
    find_problems,
    unlisted,
    unreached,
)
from ince.registry.content import ContentStore
from ince.registry.database import Database
from ince.registry.lineage import check_lineage_is_of, find_adapter_folder, read_lineage
from ince.registry.names import SHARED, check_digest, check_name, check_tenant, is_digest
from ince.registry.permissions import visible_names
from ince.registry.tenants import Tenants

__all__ = ["KEEP", "MIN_AGE_SECONDS", "Registry"]

KEEP = 3
"""Versions of a name that a collection leaves for rollbacks."""
MIN_AGE_SECONDS = 3600.0
"""How long an adapter that never had a name is left alone."""
_MIN_PREFIX = 6


class Registry:
    """An open registry.

    >>> with Registry(Path("registry"), create=True) as registry:
    ...     digest = registry.put(Path("runs/turkish"), name="turkish")
    ...     assert registry.resolve("turkish") == digest

    Args:
        folder: of the registry.
        create: make it where the folder is new or empty.
        actor: who makes the changes, for the audit log; the user of the process when None.

    Raises:
        InputError: there is no registry here, or it is of a newer ince, or cannot be read.
        OutputError: one is to be made in a folder that holds something else.
        CorruptFileError: the database is damaged.
    """

    def __init__(self, folder: Path, *, create: bool = False, actor: str | None = None) -> None:
        self.path = Path(folder)
        self._content = ContentStore(self.path)
        database = Database(self.path, create=create)
        self._ledger = Ledger(database, _user() if actor is None else actor)
        self.tenants = Tenants(self._ledger)

    def as_actor(self, actor: str) -> "Registry":
        """The same registry, with changes made in the name of `actor`."""
        other = object.__new__(Registry)
        other.path, other._content = self.path, self._content
        other._ledger = Ledger(self._ledger.database, actor)
        other.tenants = Tenants(other._ledger, self.tenants)
        return other

    def close(self) -> None:
        """Let go of the database; also of what `as_actor` gave."""
        self._ledger.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def put(
        self,
        adapter_folder: Path,
        *,
        name: str | None = None,
        tenant: str = SHARED,
        base_digest: str | None = None,
        lineage: Mapping[str, object] | None = None,
    ) -> str:
        """Copy an adapter into the registry, checked; the same content is there once.

        Args:
            adapter_folder: an adapter, or a run with one in it.
            name: give it this name at once.
            tenant: whose it is; "" is what all may share.
            base_digest: of the base's weights; None is what the folder says.
            lineage: where it comes from; None is what ``run.json`` beside the folder says.

        Returns:
            its digest (`ince.formats.adapter.adapter_digest`).

        Raises:
            InputError: no such folder or tenant, or no adapter may have this name.
            AdapterError: not an adapter that can be taken; or the quota does not allow it.
            ConfigError: it has options that ince does not build.
            CorruptFileError: a file is cut off or garbled.
            DiskFullError: the registry is as it was.
        """
        check_tenant(tenant)
        if name is not None:
            check_name(name)
        if base_digest is not None:
            check_digest(base_digest)
        source = find_adapter_folder(Path(adapter_folder))
        with self._ledger.reading() as snapshot:
            limit = most_bytes(snapshot, tenant)
        known = read_lineage(source) if lineage is None else lineage
        taken = False
        try:
            with self._content.intake(source, base_digest=base_digest, max_bytes=limit) as intake:
                digest = intake.digest
                if lineage is None and known is not None:
                    check_lineage_is_of(known, digest, where=source)
                was_whole = self._content.is_whole(digest)
                with self._ledger.changing() as change:
                    before = hold(change, intake, tenant, known)
                    if name is not None:
                        point(change, tenant, name, digest)
                    taken = not self._is_in_place(before, was_whole=was_whole)
                    if taken:
                        self._content.accept(intake)
                    elif before is not None and before.base_digest is None and intake.base_digest:
                        self._content.note_base(digest, intake.base_digest)
        except BaseException:
            if taken:
                self._clear_unlisted()
            raise
        return digest

    def _is_in_place(self, before: AdapterEntry | None, *, was_whole: bool) -> bool:
        """Whether the content needs no copy: it may have come or gone since it was looked at."""
        if before is None or not self._content.path(before.digest).is_dir():
            return False
        return was_whole or self._content.is_whole(before.digest)

    def _clear_unlisted(self) -> list[str]:
        """Remove folders of content without a row; returns their digests."""
        found: list[str] = []
        with contextlib.suppress(InceError), self._ledger.database.changing() as snapshot:
            # What cannot be removed now, the next collection removes.
            for digest in sorted(unlisted(snapshot, self._content)):
                self._content.discard(digest)
                found.append(digest)
        self._content.sweep()
        return found

    def entry(self, digest: str) -> AdapterEntry:
        """What is known of an adapter.

        Raises:
            InputError: that is no digest.
            AdapterError: there is none of this digest.
        """
        with self._ledger.reading() as snapshot:
            return find_entry(snapshot, check_digest(digest))

    def entries(self, *, tenant: str | None = None) -> list[AdapterEntry]:
        """All adapters, or those that a tenant put; oldest first."""
        with self._ledger.reading() as snapshot:
            return find_entries(snapshot, tenant=tenant)

    def names(self, *, tenant: str | None = None) -> list[Alias]:
        """All names, or a tenant's own."""
        with self._ledger.reading() as snapshot:
            return find_aliases(snapshot, tenant=tenant)

    def visible(self, tenant: str = SHARED) -> dict[str, str]:
        """The names that a tenant may use, its own and shared ones, with their digests.

        Its own name hides a shared one. Without a tenant: what is shared.
        """
        with self._ledger.reading() as snapshot:
            return visible_names(snapshot, tenant)

    def resolve(self, name: str, *, tenant: str = SHARED) -> str:
        """The digest that `name` stands for now, for this tenant.

        Raises:
            AdapterError: there is none; a name that the tenant may not use answers alike.
        """
        with self._ledger.reading() as snapshot:
            names = visible_names(snapshot, tenant, name=name if isinstance(name, str) else "")
            if name in names:
                return names[name]
            raise no_such_name(name, visible_names(snapshot, tenant))

    def find(self, text: str, *, tenant: str = SHARED) -> str:
        """The digest that a person means: a name, a digest, or how only one begins.

        Raises:
            AdapterError: nothing is called so, or several digests begin so.
        """
        with self._ledger.reading() as snapshot:
            named = find_name(snapshot, tenant, text)
            if named is not None:
                return named.digest
            if is_digest(text):
                return find_entry(snapshot, text).digest
            rows = snapshot.rows("SELECT digest FROM adapters")
            names = [alias.name for alias in find_aliases(snapshot, tenant=tenant)]
        found = [row.text("digest") for row in rows if row.text("digest").startswith(text)]
        if len(text) < _MIN_PREFIX or not found:
            raise no_such_name(text, names)
        if len(found) > 1:
            raise AdapterError(
                "several digests begin so", got=text, expected="more of the digest's digits"
            )
        return found[0]

    def folder(self, digest: str) -> Path:
        """The folder of an adapter, with its files; nothing in it is to be changed.

        Raises:
            InputError: that is no digest.
            AdapterError: the registry has none, or its folder is gone.
        """
        path = self._content.path(digest)
        if not path.is_dir():
            raise no_such_digest(digest, where=self.path)
        return path.absolute()

    def alias(self, name: str, digest: str, *, tenant: str = SHARED) -> None:
        """Let `name` stand for an adapter; what it stood for is where a rollback goes.

        Raises:
            InputError: no adapter may have this name, or that is no digest.
            AdapterError: the tenant has not put such an adapter.
        """
        with self._ledger.changing() as change:
            point(change, check_tenant(tenant), check_name(name), check_digest(digest))

    def rollback(self, name: str, *, tenant: str = SHARED) -> str:
        """Let `name` stand for what it stood for before; a second time, for the one before that.

        Returns:
            the digest that it stands for now.

        Raises:
            AdapterError: no such name, nothing before, or it was removed from the registry.
        """
        with self._ledger.changing() as change:
            return turn_back(change, tenant, name)

    def history(self, name: str, *, tenant: str = SHARED) -> list[NameVersion]:
        """What a name stood for, newest first.

        Raises:
            AdapterError: there never was such a name.
        """
        with self._ledger.reading() as snapshot:
            return find_history(snapshot, tenant, name)

    def remove(self, name: str, *, tenant: str = SHARED) -> str:
        """Take a name away; the adapter stays until a collection. Returns its digest.

        Raises:
            AdapterError: no such name.
        """
        with self._ledger.changing() as change:
            return take_name(change, tenant, name)

    def gc(
        self, *, dry_run: bool = False, keep: int = KEEP, min_age_seconds: float = MIN_AGE_SECONDS
    ) -> Collected:
        """Remove adapters that no name stands for, nor a rollback may go to.

        Args:
            dry_run: say what would go, and change nothing.
            keep: versions besides the current one that each name keeps.
            min_age_seconds: an adapter that never had a name stays until it is so old.
        """
        if keep < 0 or not min_age_seconds >= 0:
            raise InputError(
                "what a collection keeps cannot be negative", got=f"{keep}, {min_age_seconds}"
            )
        with self._ledger.reading() as snapshot:
            sizes = {each.digest: each for each in find_entries(snapshot)}
            lost = unreached(snapshot, keep=keep, min_age_seconds=min_age_seconds)
            leftovers = sorted(unlisted(snapshot, self._content))
        gone = [
            digest
            for digest, entry in sizes.items()
            if all((held.tenant, digest) in lost for held in entry.holdings)
        ]
        swept = False
        if not dry_run:
            with self._ledger.changing() as change:
                gone = drop_unreached(change, keep=keep, min_age_seconds=min_age_seconds)
            cleared = self._clear_unlisted()
            leftovers = [digest for digest in cleared if digest not in gone]
            swept = self._content.sweep()
        return Collected(
            digests=tuple(gone),
            num_bytes=sum(sizes[digest].num_bytes for digest in gone if digest in sizes),
            num_kept=len(sizes) - len(gone),
            leftovers=tuple(leftovers),
            swept=swept,
        )

    def verify(self) -> Verified:
        """Read everything and check it: files, names, database and audit log."""
        with self._ledger.reading() as snapshot:
            found = find_entries(snapshot)
            num_names, num_changes = len(find_aliases(snapshot)), current_version(snapshot)
            problems = find_problems(snapshot)
        damaged = damaged_content(self._content, [each.digest for each in found])
        if damaged:
            with self._ledger.reading() as snapshot:  # some may have been collected meanwhile
                listed = {each.digest for each in find_entries(snapshot)}
            problems += [damaged[digest] for digest in damaged if digest in listed]
        return Verified(
            num_adapters=len(found),
            num_bytes=sum(each.num_bytes for each in found),
            num_names=num_names,
            num_changes=num_changes,
            problems=tuple(problems),
        )

    def audit(self, *, last: int = 1000, after_id: int = 0) -> list[AuditRecord]:
        """The latest changes, oldest first."""
        with self._ledger.reading() as snapshot:
            return read_audit(snapshot, last=last, after_id=after_id)

    def version(self) -> int:
        """A number that grows with each change, whichever process makes it."""
        with self._ledger.reading() as snapshot:
            return current_version(snapshot)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in some containers
        return "unknown"
