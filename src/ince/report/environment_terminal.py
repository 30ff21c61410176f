"""What a machine offers, in a terminal: devices, kernels, memory, cache, versions.

Names and reasons come from drivers and libraries: they reach rich as `Text`, never as its markup.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ince.environment import Environment, Unknown
from ince.report.loose import shown
from ince.units import format_bytes

__all__ = ["environment_lines"]

_LABEL_WIDTH = 8


def environment_lines(found: Environment) -> Iterator[RenderableType]:
    """Everything to print; 80 columns are enough."""
    yield Text(_title(found), style="bold")
    yield Text()
    yield _table(("device", "name", "free memory", "what it can"), _devices(found))
    yield from (_remark(line) for line in _missing_devices(found))
    yield Text()
    if isinstance(found.backends, Unknown):
        yield _remark(f"kernels  {found.backends}")
    else:
        rows = [
            (each.device, each.backend, each.detail, each.fallback_reason or "–")
            for each in found.backends
        ]
        yield _table(("device", "kernels", "detail", "why not the fastest"), rows)
    yield Text()
    yield from _facts(found)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in head:
        table.add_column(Text(name), overflow="fold")
    for row in rows:
        table.add_row(*(Text(shown(cell)) for cell in row))
    return table


def _remark(line: str) -> Text:
    return Text(shown(line), style="yellow")


def _title(found: Environment) -> str:
    versions = found.versions
    version = "" if isinstance(versions, Unknown) else f" {versions.get('ince', '(not installed)')}"
    return f"ince{version} on {found.platform}"


def _devices(found: Environment) -> Iterator[tuple[str, str, str, str]]:
    processor, memory = found.processor, found.memory
    can = f"{_cores(found)}; {_instruction_sets(found)}"
    yield "cpu", str(processor.name), _part(memory.free_bytes, memory.total_bytes), can
    devices = found.accelerators.devices
    for each in () if isinstance(devices, Unknown) else devices:
        capability = each.compute_capability
        can = "" if capability is None else f"compute capability {capability}"
        yield each.device, str(each.name), _part(each.free_bytes, each.total_bytes), can


def _part(free: int | Unknown, total: int | Unknown) -> str:
    return f"{_bytes(free)} of {_bytes(total)}"


def _bytes(value: int | Unknown) -> str:
    return str(value) if isinstance(value, Unknown) else format_bytes(value)


def _cores(found: Environment) -> str:
    own, every = found.processor.num_cores, found.processor.num_cores_of_machine
    if isinstance(every, Unknown) or own == every:
        return f"{own} core" if own == 1 else f"{own} cores"
    return f"{own} of {every} cores"


def _instruction_sets(found: Environment) -> str:
    sets = found.processor.instruction_sets
    if isinstance(sets, Unknown):
        return f"instruction sets {sets}"
    usable = [name for name, there in sets.items() if there]
    absent = [name for name, there in sets.items() if not there]
    return ", ".join([*usable, *(f"no {name}" for name in absent)])


def _missing_devices(found: Environment) -> Iterator[str]:
    accelerators = found.accelerators
    if isinstance(accelerators.devices, Unknown):
        yield f"GPUs {accelerators.devices}"
    elif accelerators.none_because is not None:
        yield f"no GPU: {accelerators.none_because}"


def _facts(found: Environment) -> Iterator[Table]:
    cache, runtime = found.cache, found.accelerators.runtime
    yield _fact("threads", _threads(found))
    yield _fact("cache", _cache(found))
    yield _fact("its disk", f"{_part(cache.disk_free_bytes, cache.disk_total_bytes)} free")
    if runtime is not None:
        yield _fact("torch for", str(runtime))
    yield _fact("versions", _versions(found))


def _fact(label: str, value: str) -> Table:
    # A table each: its value is folded beside its label, and padded to no other's width.
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True, width=_LABEL_WIDTH)
    grid.add_column(overflow="fold")
    grid.add_row(label, Text(shown(value)))
    return grid


def _threads(found: Environment) -> str:
    inside, between = found.threads.inside_operations, found.threads.between_operations
    return f"{inside} inside an operation, {between} for operations side by side"


def _cache(found: Environment) -> str:
    cache = found.cache
    if isinstance(cache.folder, Unknown):
        return str(cache.folder)
    files = f"{cache.num_files} file" if cache.num_files == 1 else f"{cache.num_files} files"
    return f"{_from_home(cache.folder)}  {_bytes(cache.size_bytes)} in {files}"


def _from_home(path: Path) -> str:
    try:
        return f"~/{path.relative_to(Path.home())}"
    except (ValueError, RuntimeError):  # elsewhere; or no home is known
        return str(path)


def _versions(found: Environment) -> str:
    versions = found.versions
    if isinstance(versions, Unknown):
        return str(versions)
    return ", ".join(f"{name} {version}" for name, version in versions.items() if name != "ince")
