"""A folder in 4 bits in a terminal: its size, what is packed and what is not, and the error.

Names come from files: they reach rich as `Text`, never as its markup.
"""

import shlex
from collections.abc import Iterator
from pathlib import Path

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ince.publish import QuantizedFolder
from ince.report.loose import shown
from ince.units import format_bytes, format_count, format_seconds

__all__ = ["quantized_lines"]

_LABEL_WIDTH = 8


def quantized_lines(
    found: QuantizedFolder, out: Path, *, source_bytes: int, seconds: float
) -> Iterator[RenderableType]:
    """Everything to print of a folder that was just written; 80 columns are enough.

    Args:
        found: what is in it.
        out: the folder.
        source_bytes: of the weights that it was made from, as they were stored.
        seconds: that it took.
    """
    ratio = source_bytes / max(1, found.file_bytes)
    yield _line(
        "size",
        f"{format_bytes(found.file_bytes)}, {ratio:.2f} times smaller than the "
        f"{format_bytes(source_bytes)} that were read",
    )
    yield _line(
        "packed",
        f"{format_count(found.num_packed)} weights at {found.bits_per_packed_weight:.3f} bits",
    )
    if found.num_kept:
        yield _line("kept", f"{format_count(found.num_kept)} as they were{_kept(found)}")
    yield _line("in all", f"{found.bits_per_weight:.2f} bits a weight")
    yield Text()
    yield _table(found)
    yield Text()
    stacks = [kind.name for kind in found.kinds if kind.is_stack]
    if stacks:
        yield _line(
            "note",
            f"fused experts are packed ({', '.join(stacks)}), which ince reads, and bitsandbytes "
            "does not; --skip experts keeps them in 16 bits",
        )
    yield _line("time", format_seconds(seconds))
    yield _line("model", str(out))
    yield _line("next", f"ince chat {shlex.quote(str(out))}")


def _line(label: str, value: str) -> Text:
    return Text(f"{label:<{_LABEL_WIDTH}}", style="dim").append(shown(value), style="not dim")


def _kept(found: QuantizedFolder) -> str:
    return f", most in {' and '.join(found.kept)}" if found.kept else ""


def _table(found: QuantizedFolder) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("layers", overflow="fold")
    for head in ("n", "weights", "size", "‖W−Ŵ‖/‖W‖"):
        table.add_column(head, justify="right", no_wrap=True)
    for kind in found.kinds:
        error = kind.relative_error
        table.add_row(
            Text(shown(kind.name, limit=120)),
            str(kind.num_tensors),
            format_count(kind.num_weights),
            format_bytes(kind.num_bytes),
            "–" if error is None else f"{error:.2%}",
        )
    return table
