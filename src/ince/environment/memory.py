"""Memory that a program could still have, and the cache with the disk that it lies on.

In a container the limit of its control group counts as well as the machine's memory: the
machine may have 100 GiB free, and this program be killed at two.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ince.environment.unknown import Unknown, ask
from ince.record import hardware

__all__ = ["Cache", "Memory", "read_cache", "read_memory"]

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/proc/self/cgroup")
_CGROUP_ROOT = Path("/sys/fs/cgroup")
_VM_STAT = "/usr/bin/vm_stat"
_VM_STAT_SECONDS = 5
# Pages that macOS hands out without writing anything to disk first.
_FREE_PAGES = ("Pages free", "Pages inactive", "Pages speculative", "Pages purgeable")


@dataclass(frozen=True)
class Memory:
    """Main memory, in bytes: what there is for this process, and what it could still have."""

    total_bytes: int | Unknown
    free_bytes: int | Unknown


@dataclass(frozen=True)
class Cache:
    """ince's folder of what it can make again.

    Attributes:
        folder: where it is, or would be.
        size_bytes: of its files.
        num_files: in it.
        disk_free_bytes: of the disk that it is on.
        disk_total_bytes: of that disk.
    """

    folder: Path | Unknown
    size_bytes: int | Unknown
    num_files: int | Unknown
    disk_free_bytes: int | Unknown
    disk_total_bytes: int | Unknown


def read_memory() -> Memory:
    """Find out how much memory there is."""
    limits = ask(lambda: list(_group_limits()))
    groups = [] if isinstance(limits, Unknown) else limits
    total, free = ask(_machine_total), ask(_machine_free)
    if not isinstance(total, Unknown):
        total = min([total, *(limit for limit, _ in groups)])
    if not isinstance(free, Unknown):
        free = max(0, min([free, *(limit - used for limit, used in groups)]))
    return Memory(total, free)


def _machine_total() -> int | Unknown:
    total = hardware()["memory_bytes"]
    return total if isinstance(total, int) else Unknown("the system does not tell")


def _machine_free() -> int | Unknown:
    if sys.platform == "darwin":
        return _vm_stat_free()
    for line in _MEMINFO.read_text(encoding="utf-8").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return Unknown(f"{_MEMINFO} does not say what is available")


def _vm_stat_free() -> int | Unknown:
    done = subprocess.run(
        [_VM_STAT], capture_output=True, text=True, timeout=_VM_STAT_SECONDS, check=True
    )
    page = re.search(r"page size of (\d+) bytes", done.stdout)
    counts = [re.search(rf"^{name}:\s+(\d+)", done.stdout, re.MULTILINE) for name in _FREE_PAGES]
    pages = [int(count[1]) for count in counts if count is not None]
    if page is None or not pages:
        return Unknown("vm_stat tells something else")
    return int(page[1]) * sum(pages)


def _group_limits() -> Iterator[tuple[int, int]]:
    """(limit, used) in bytes of each control group around this process that has a limit.

    Pages of files that can be dropped at once do not count as used.
    """
    lines = _CGROUP.read_text(encoding="utf-8").splitlines()
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    inner = _CGROUP_ROOT / own
    for group in (inner, *inner.parents):
        if not group.is_relative_to(_CGROUP_ROOT):
            return
        limit = _word(group / "memory.max")
        used = _word(group / "memory.current")
        if limit is None or used is None:
            continue
        yield limit, max(0, used - _droppable(group / "memory.stat"))


def _word(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such file; or "max", which is no limit
        return None


def _droppable(path: Path) -> int:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))


def read_cache() -> Cache:
    """Find out about the cache; it is not made when it is not there."""
    folder = ask(_folder)
    if isinstance(folder, Unknown):
        return Cache(folder, folder, folder, folder, folder)
    sizes = ask(lambda: list(_file_sizes(folder)))
    disk = ask(lambda: shutil.disk_usage(_nearest(folder)))
    return Cache(
        folder=folder,
        size_bytes=sizes if isinstance(sizes, Unknown) else sum(sizes),
        num_files=sizes if isinstance(sizes, Unknown) else len(sizes),
        disk_free_bytes=disk if isinstance(disk, Unknown) else disk.free,
        disk_total_bytes=disk if isinstance(disk, Unknown) else disk.total,
    )


def _folder() -> Path:
    from ince.models.cache import cache_folder

    return cache_folder()


def _nearest(folder: Path) -> Path:
    """The folder, or the one above it that is there."""
    absolute = folder.absolute()
    return next(each for each in (absolute, *absolute.parents) if each.exists())


def _file_sizes(folder: Path) -> Iterator[int]:
    if not folder.exists():
        return
    pending = [folder]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(Path(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    yield entry.stat(follow_symlinks=False).st_size
