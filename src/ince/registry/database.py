"""The registry's SQLite file: opened, checked, read in snapshots, changed in transactions.

In WAL mode readers never wait for a writer, and there is one writer at a time, whichever
process it is in: who holds the write transaction may also move folders of content. Two
connections serve all threads of a process, so that a request that looks a name up does not
wait behind a change of the same process.

A process that is killed leaves what SQLite rolls back when the file is opened again. Do not
carry an open database through `os.fork`: open it in the child.
"""

import contextlib
import json
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

from ince.errors import CorruptFileError, DiskFullError, InceError, InputError, OutputError
from ince.registry.schema import APPLICATION_ID, SCHEMA, SCHEMA_VERSION, TABLES

__all__ = ["DATABASE_FILE", "Database", "Fields", "Value"]

DATABASE_FILE = "registry.sqlite3"
_BUSY_SECONDS = 30.0
_LITTLE_BYTES = 1 << 16

Value = str | int | float | None
_RESTORE = (
    "restore the folder from a backup; the adapters in its content/ are whole files of their own, "
    "and can be put into a new registry"
)


class Fields:
    """A row, read with suspicion: what is not of the type it was written as is damage."""

    def __init__(self, row: sqlite3.Row, path: Path) -> None:
        self._row, self._path = row, path

    def _value(self, column: str) -> object:
        try:
            value: object = self._row[column]
        except IndexError:  # a damaged schema names its columns otherwise
            raise self._damaged(column, "no such column") from None
        return value

    def _damaged(self, column: str, got: object) -> CorruptFileError:
        return CorruptFileError(
            "the registry's database is damaged: an entry is not what was written",
            where=f"{self._path}: {column}",
            got=got,
            do=_RESTORE,
        )

    def text(self, column: str) -> str:
        """A text."""
        value = self._value(column)
        if not isinstance(value, str):
            raise self._damaged(column, value)
        return value

    def text_or_none(self, column: str) -> str | None:
        """A text, or nothing."""
        return None if self._value(column) is None else self.text(column)

    def integer(self, column: str) -> int:
        """A whole number."""
        value = self._value(column)
        if not isinstance(value, int):
            raise self._damaged(column, value)
        return value

    def integer_or_none(self, column: str) -> int | None:
        """A whole number, or nothing."""
        return None if self._value(column) is None else self.integer(column)

    def real(self, column: str) -> float:
        """A number."""
        value = self._value(column)
        if not isinstance(value, int | float):
            raise self._damaged(column, value)
        return float(value)

    def json(self, column: str) -> dict[str, object]:
        """A JSON object."""
        try:
            value: object = json.loads(self.text(column))
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise self._damaged(column, self._value(column))
        return cast(dict[str, object], value)

    def json_or_none(self, column: str) -> dict[str, object] | None:
        """A JSON object, or nothing."""
        return None if self._value(column) is None else self.json(column)


class Database:
    """An open registry file.

    Args:
        folder: of the registry.
        create: make it where the folder is new or empty.

    Raises:
        InputError: there is no registry here, or it is of a newer ince, or cannot be read.
        OutputError: one is to be made in a folder that holds something else.
        CorruptFileError: the file is damaged.
    """

    def __init__(self, folder: Path, *, create: bool = False) -> None:
        self.path = folder / DATABASE_FILE
        self._read_lock, self._write_lock = threading.Lock(), threading.Lock()
        self._writer: sqlite3.Connection | None = None
        if create:
            _prepare(folder, self.path)
        elif not self.path.is_file():
            raise InputError(
                "there is no registry here",
                where=folder,
                expected=f"a folder with {DATABASE_FILE}",
                do="name the registry's folder; a new one is made by: ince registry put",
            )
        with self._explained():
            self._reader, self.read_only = _open(self.path)
        try:
            with self._explained():
                self._check(create=create)
        except BaseException:
            self.close()
            raise

    def _check(self, *, create: bool) -> None:
        (version,) = self._reader.execute("PRAGMA user_version").fetchone()
        tables = {name for (name,) in self._reader.execute("SELECT name FROM sqlite_schema")}
        if version == 0 and not tables and create:
            self._make()
            return
        (application,) = self._reader.execute("PRAGMA application_id").fetchone()
        if application != APPLICATION_ID:
            raise InputError(
                "this database is no registry",
                where=self.path,
                do="name the registry's folder; one whose making was cut off is made anew by: "
                "ince registry put",
            )
        if version > SCHEMA_VERSION:
            raise InputError(
                "this registry was written by a newer ince",
                where=self.path,
                got=f"schema {version}",
                expected=f"schema {SCHEMA_VERSION} or older",
                do="install the newer ince",
            )
        if version < 1 or not tables >= TABLES:
            raise CorruptFileError(
                "the registry's database is damaged: tables are missing",
                where=self.path,
                got=", ".join(sorted(TABLES - tables)) or f"schema {version}",
                do=_RESTORE,
            )

    def _make(self) -> None:
        writer = self._connect_writer()
        writer.execute("BEGIN IMMEDIATE")
        try:
            # Another process may have been quicker.
            (version,) = writer.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in SCHEMA:
                    writer.execute(statement)
                writer.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                writer.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            writer.execute("COMMIT")
        except BaseException:
            _roll_back(writer)
            raise

    def _connect_writer(self) -> sqlite3.Connection:
        if self._writer is None:
            self._writer = _connect(self.path, "rw")
        return self._writer

    @contextlib.contextmanager
    def reading(self) -> Iterator["Snapshot"]:
        """One snapshot: what other threads and processes change meanwhile is not seen."""
        with self._read_lock, self._explained():
            self._reader.execute("BEGIN")
            try:
                yield Snapshot(self._reader, self.path)
            finally:
                _roll_back(self._reader)

    @contextlib.contextmanager
    def changing(self) -> Iterator["Snapshot"]:
        """One transaction: all of it happens, and is on the disk, or nothing does.

        Raises:
            InputError: the registry may only be read.
            DiskFullError: nothing was changed.
            InceError: another process kept the registry for too long.
        """
        if self.read_only:
            raise InputError(
                "this registry may only be read",
                where=self.path.parent,
                do="run the command as a user who may write to the folder",
            )
        with self._write_lock, self._explained():
            writer = self._connect_writer()
            writer.execute("BEGIN IMMEDIATE")
            try:
                yield Snapshot(writer, self.path)
                writer.execute("COMMIT")
            except BaseException:
                _roll_back(writer)
                raise

    def close(self) -> None:
        """Let go of the file. The last one to do so folds its journal into it."""
        with self._read_lock, self._write_lock:
            for connection in (self._writer, self._reader):
                if connection is not None:
                    with contextlib.suppress(sqlite3.Error):
                        connection.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:
            # What SQLite says of damage quotes it, and Python decodes what was said.
            raise _explain(error, self.path) from error


class Snapshot:
    """A read or write transaction: rows come out as `Fields`."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection, self._path = connection, path

    def rows(self, sql: str, *values: Value) -> list[Fields]:
        """All rows of a query."""
        return [Fields(row, self._path) for row in self._connection.execute(sql, values)]

    def row(self, sql: str, *values: Value) -> Fields | None:
        """The first row of a query."""
        row = self._connection.execute(sql, values).fetchone()
        return None if row is None else Fields(row, self._path)

    def run(self, sql: str, *values: Value) -> int:
        """Run a statement; returns the id of the row that it inserted."""
        return self._connection.execute(sql, values).lastrowid or 0

    def run_many(self, sql: str, values: Sequence[Sequence[Value]]) -> None:
        """Run a statement for each of `values`."""
        self._connection.executemany(sql, values)


def _prepare(folder: Path, path: Path) -> None:
    """Make the folder and an empty file that only its owner reads: it will hold hashes of keys."""
    if path.is_file():
        return
    occupied = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    # Asked again: what the folder holds by now may be the registry that another process makes.
    if occupied and not path.is_file():
        raise OutputError(
            "a registry cannot be made here: this is something else",
            where=folder,
            expected="a registry, or a folder that is new or empty",
            do="choose another folder",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except OSError as error:
        raise InputError(
            f"a registry cannot be made here: {error.strerror}",
            where=folder,
            do="choose a folder that you may write to",
        ) from error


def _connect(path: Path, mode: str, more: str = "") -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}{more}",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        connection.row_factory = sqlite3.Row
        for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")
        if mode == "rw":
            # FULL: a change that was answered survives a power cut, not a crash alone.
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA journal_mode = WAL")
    except BaseException:
        connection.close()
        raise
    return connection


def _open(path: Path) -> tuple[sqlite3.Connection, bool]:
    """A connection to read with, and whether the registry may only be read."""
    if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK):
        return _connect(path, "rw"), False
    journal = path.with_name(path.name + "-wal")
    # Where nothing may be written there is no shared memory. Without a journal the file is all
    # there is, and does not change.
    settled = not journal.exists() or journal.stat().st_size == 0
    return _connect(path, "ro", "&immutable=1" if settled else ""), True


def _roll_back(connection: sqlite3.Connection) -> None:
    with contextlib.suppress(sqlite3.Error):
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _explain(error: Exception, path: Path) -> InceError:
    if isinstance(error, sqlite3.ProgrammingError):
        return InceError("the registry was closed", where=path, got=str(error))
    code = getattr(error, "sqlite_errorcode", None)
    kind = code & 0xFF if isinstance(code, int) else None
    if kind == sqlite3.SQLITE_FULL or (
        kind == sqlite3.SQLITE_IOERR and shutil.disk_usage(path.parent).free < _LITTLE_BYTES
    ):
        return DiskFullError(
            "no space left on the device",
            where=path,
            do="free some space and run the same command again; nothing was changed",
        )
    if kind in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return InputError(
            "the registry's database cannot be opened",
            where=path,
            got=str(error),
            do="run the command as a user who may write to the folder, or copy the folder",
        )
    if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return InceError(
            f"another process has kept the registry for {_BUSY_SECONDS:.0f} seconds",
            where=path,
            do="run the command again when it is done",
        )
    return CorruptFileError(
        "the registry's database is damaged", where=path, got=str(error), do=_RESTORE
    )
