"""The adapters that ``ince chat`` chooses from, by the names that a person gives them.

TARGET's own, those of ``--adapter``, the folders in ``--adapters`` and the names of ``--registry``:
looked at when they are asked for, so that what was trained meanwhile is there. Nothing is loaded
here. Two adapters of one name are an error, not a guess.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ince.cli.adapter_base import CONFIG_FILE
from ince.cli.target import Target, find_target
from ince.errors import AdapterError, InputError, did_you_mean

if TYPE_CHECKING:
    from ince.registry import Registry

__all__ = ["BASE", "ChatAdapters", "adapter_name"]

BASE = "base"
"""What stands for no adapter."""


def adapter_name(target: Target) -> str:
    """What an adapter is called by: its run's folder, or its own."""
    folder = target.run or target.adapter
    assert folder is not None
    name = folder.expanduser().resolve().name
    # It stands in the prompt: a name may not move the cursor.
    shown = "".join(each if each.isprintable() else "?" for each in name)
    return shown if shown not in ("", BASE) else "adapter"


@dataclass(frozen=True)
class ChatAdapters:
    """Names to folders.

    Attributes:
        named: that were named on the command line, by their names.
        root: folder of adapters, or None.
        registry: open, or None.
    """

    named: dict[str, Path]
    root: Path | None = None
    registry: "Registry | None" = None

    @classmethod
    def of(
        cls,
        target: Target,
        given: Sequence[str],
        root: Path | None,
        registry: "Registry | None",
    ) -> "ChatAdapters":
        """Those of the command line.

        Args:
            target: what is talked to; its own adapter comes first.
            given: ``NAME=PATH`` or ``PATH`` each.
            root, registry: see the class.

        Raises:
            InputError: there is no such folder, or two adapters have one name.
            AdapterError, CorruptFileError: see `find_target`.
        """
        named: dict[str, Path] = {}
        if target.adapter is not None:
            named[adapter_name(target)] = target.adapter
        for text in given:
            name, folder = _parsed(text, target)
            if not name or name == BASE:
                raise InputError(
                    "an adapter needs a name of its own",
                    where="--adapter",
                    got=text,
                    do=f"--adapter NAME={folder}, with another NAME than {BASE!r}",
                )
            if name in named and not _is_same(named[name], folder):
                raise _two_of_a_name(name, named[name], folder)
            named[name] = folder
        if root is not None and not root.is_dir():
            raise InputError("no such folder of adapters", where="--adapters", got=root)
        found = cls(named, root, registry)
        found.names()
        return found

    def __bool__(self) -> bool:
        """Whether there may be any."""
        return bool(self.named) or self.root is not None or self.registry is not None

    def names(self) -> list[str]:
        """All of them, those of the command line first.

        Raises:
            InputError: two adapters have one name.
        """
        found: dict[str, Callable[[], Path]] = {
            name: partial(Path, folder) for name, folder in self.named.items()
        }
        for name, where in self._others():
            if name == BASE:
                continue  # it could not be asked for
            if name in found and not _is_same(one := found[name](), other := where()):
                raise _two_of_a_name(name, one, other)
            found.setdefault(name, where)
        return list(found)

    def folder(self, name: str) -> Path:
        """The folder of an adapter.

        Raises:
            InputError: there is none of this name, and which are near.
            AdapterError: it is gone from the registry.
        """
        if name in self.named:
            return self.named[name]
        found = dict(self._others())
        if name in found:
            return found[name]()
        raise InputError(
            "no such adapter",
            got=name,
            do=(
                did_you_mean(name, [*self.named, *found, BASE])
                or ("/adapter lists what there is" if self.named or found else None)
                or "there are none: start with --adapter PATH, --adapters DIR or --registry DIR"
            ),
        )

    def _others(self) -> Iterator[tuple[str, Callable[[], Path]]]:
        """Names, and what finds the folder: one that is gone shall not hide the others."""
        if self.root is not None:
            for folder in sorted(self.root.iterdir()):
                if (folder / CONFIG_FILE).is_file():
                    yield folder.name, partial(Path, folder)
        if self.registry is not None:
            for name, digest in self.registry.visible().items():
                yield name, partial(self.registry.folder, digest)


def _parsed(text: str, target: Target) -> tuple[str, Path]:
    """Name and folder of one ``--adapter``."""
    name, sign, path = text.partition("=")
    has_name = bool(sign) and not Path(text).expanduser().exists()
    if not has_name:
        path = text
    folder = Path(path).expanduser()
    if not any((folder / file).is_file() for file in (CONFIG_FILE, "run.json")):
        raise AdapterError(
            "no adapter there",
            where="--adapter",
            got=path,
            expected="an adapter's folder, or a run's",
        )
    found = find_target(path, base=target.base)
    assert found.adapter is not None
    return name if has_name else adapter_name(found), found.adapter


def _is_same(one: Path, other: Path) -> bool:
    from ince.formats.adapter import adapter_digest

    return one.resolve() == other.resolve() or adapter_digest(one) == adapter_digest(other)


def _two_of_a_name(name: str, one: Path, other: Path) -> InputError:
    return InputError(
        "two adapters have one name",
        where=name,
        got=f"{one} and {other}",
        do="give one of them another: --adapter NAME=PATH",
    )
