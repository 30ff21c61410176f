"""`StepAdapters`: which rows of a forward belong to which adapter, for every layer.

A step's rows are sorted by adapter, so each adapter has one segment. Where an adapter's parts lie
in its block is a table that was made when it was loaded; a step stacks the tables of its adapters
into the layouts of all layers at once, and keeps them while neither rows nor adapters change, as
from one token to the next.

Shapes: G segments, L layers.
"""

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ince.errors import InceError
from ince.ops.lora_segments import LAYOUT_COLUMNS, add_lora_segments_
from ince.serve.adapters.packed import PackedAdapter

__all__ = ["Segment", "StepAdapters"]

Segment = tuple[PackedAdapter | None, int, int]
"""An adapter, or None for the base; its first row, and the one behind its last."""

_RANK = LAYOUT_COLUMNS.index("rank")


class StepAdapters:
    """The adapters of the forward that runs; shared by all layers of a model.

    Args:
        num_layers: L, that may have an adapter.
        head: which of them is the output layer, which sees fewer rows than the others.
    """

    def __init__(self, num_layers: int, head: int | None) -> None:
        self._num_layers = num_layers
        self._head = head
        self._is_on = False
        self._body = _Layouts((), num_layers)
        self._wanted = _Layouts((), num_layers)
        self._of: list[_Layouts] = []

    @contextlib.contextmanager
    def use(
        self, tokens: Sequence[Segment], wanted: Sequence[Segment] | None = None
    ) -> Iterator[None]:
        """Inside, forwards apply these adapters. One at a time.

        Args:
            tokens: segments of all rows, ascending.
            wanted: of the rows that reach the output layer; None where all do.
        """
        # The same rows and adapters as in the last step need no new tables.
        if self._body.segments != tuple(tokens):
            self._body = _Layouts(tuple(tokens), self._num_layers)
        if wanted is not None and self._wanted.segments != tuple(wanted):
            self._wanted = _Layouts(tuple(wanted), self._num_layers, only=self._head)
        head = self._body if wanted is None else self._wanted
        self._of = [self._body] * self._num_layers
        if self._head is not None:
            self._of[self._head] = head
        self._is_on = True
        try:
            yield
        finally:
            self._is_on = False

    def forget(self) -> None:
        """Hold no adapter any longer, between steps."""
        self._body = self._wanted = _Layouts((), self._num_layers)
        self._of = []

    def add(self, layer: int, x: Tensor, y: Tensor) -> Tensor | None:
        """What a layer gives with its rows' adapters; None where that is `y`.

        Args:
            layer: its number.
            x: what it took, (..., D). y: what it gave, (..., O); may be written into.
        """
        if not self._is_on:
            return None
        layouts = self._of[layer]
        layout = layouts.layers[layer]
        if layout is None:
            return None
        x_ND = x.reshape(-1, x.shape[-1])
        if x_ND.shape[0] != layouts.num_rows:
            raise InceError(
                "a layer saw other rows than those of the step",
                got=f"{x_ND.shape[0]} rows",
                expected=f"{layouts.num_rows}",
            )
        if not y.is_contiguous():
            y = y.contiguous()
        add_lora_segments_(y.view(-1, y.shape[-1]), x_ND.to(y.dtype), layouts.blocks, layout)
        return y


class _Layouts:
    """The tables of one division of rows.

    Args:
        segments: of all rows.
        num_layers: L.
        only: of which layer alone they are needed; None for all.
    """

    def __init__(
        self, segments: tuple[Segment, ...], num_layers: int, *, only: int | None = None
    ) -> None:
        self.segments = segments
        self.num_rows = segments[-1][2] if segments else 0
        self.blocks: list[Tensor] = []
        self.layers: list[Tensor | None] = [None] * num_layers
        used = [(each, start, stop) for each, start, stop in segments if each and start < stop]
        if not used:
            return
        self.blocks = [each.block for each, _, _ in used]
        chosen = slice(None) if only is None else slice(only, only + 1)
        num_l = num_layers if only is None else 1
        layouts_LGC = np.empty((num_l, len(used), len(LAYOUT_COLUMNS)), dtype=np.int64)
        touched = np.zeros(num_l, dtype=bool)
        for g, (each, start, stop) in enumerate(used):
            table_LC = each.table[chosen]
            layouts_LGC[:, g, :_RANK] = (g, start, stop)
            layouts_LGC[:, g, _RANK:] = table_LC
            touched |= table_LC[:, 0] > 0  # whatever an adapter does in a layer has a rank
        first = 0 if only is None else only
        for number, layout in enumerate(torch.from_numpy(layouts_LGC).unbind(0)):
            if touched[number]:
                self.layers[first + number] = layout
