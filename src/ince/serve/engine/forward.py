"""`PagedForward`: one step of a model over rows of many sequences, and the pools it writes to.

The model is transformers', unchanged: tokens go in as (N, 1), one to a row, attention is
`ince_paged`, and logits are made where they are wanted only. Blocks that lie before a layer's
sliding window are kept as long as their sequence.

Shapes: N tokens, S sequences, M blocks of the longest, W wanted places, V vocabulary.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ince.errors import ModelReferenceError
from ince.models import logits_only_at
from ince.serve.engine.attention import LayerShape, StepTables, in_step, paged, survey
from ince.serve.engine.blocks import BLOCK_SIZE
from ince.serve.engine.products import few_row_products
from ince.serve.engine.schedule import StepRow
from ince.serve.engine.working_set import AdapterSlots

__all__ = ["EngineAdapters", "PagedForward", "Segment", "Wanted", "block_bytes", "layer_shapes"]

_ALIGNMENT = 64  # bytes, as torch's own memory has

Segment = tuple[Any, int, int]
"""(what is held of the adapter or None, first token, one past the last)."""


class EngineAdapters(AdapterSlots, Protocol):
    """Adapters, and the model's layers that apply them; `ince.serve.adapters` has both."""

    def use(
        self, tokens: Sequence[Segment], wanted: Sequence[Segment]
    ) -> AbstractContextManager[object]:
        """Inside, in this thread, the model's layers apply these segments' adapters.

        Args:
            tokens: of all rows of the step.
            wanted: of the rows that reach the output layer.
        """
        ...

    def listen(self, listener: Callable[[], None]) -> None:
        """Call this, on any thread, when an adapter was loaded or could not be."""
        ...

    def stats(self) -> object:
        """Counts and bytes of the tiers."""
        ...


@dataclass(frozen=True)
class Wanted:
    """The logits of a step.

    Attributes:
        logits: (W, V) of the model, in its type.
        starts: (S + 1) places in it: those of row s are ``starts[s]:starts[s + 1]``.
    """

    logits: Tensor
    starts: list[int]

    def of(self, row: int) -> Tensor:
        """(w, V), where row `row` wanted logits."""
        return self.logits[self.starts[row] : self.starts[row + 1]]


def layer_shapes(model: Any) -> dict[int, LayerShape]:
    """What each layer of the model keeps of a token.

    Raises:
        ModelReferenceError: the engine does not compute some layer.
    """
    config = model.config.get_text_config()
    kinds: set[str] = set(getattr(config, "layer_types", None) or ())
    strange: list[str] = sorted(kinds - {"full_attention", "sliding_attention"})
    if getattr(config, "num_kv_shared_layers", 0):
        strange.append("layers that share keys and values")
    if getattr(config, "use_bidirectional_attention", False) is True:
        strange.append("attention to both sides")
    if getattr(config, "is_encoder_decoder", False):
        strange.append("an encoder")
    if strange:
        raise ModelReferenceError(
            "the engine does not compute this model's layers",
            where=type(model).__name__,
            got=", ".join(strange),
            expected="layers of full or sliding attention",
        )
    device = next(model.parameters()).device
    token = torch.zeros(1, 1, dtype=torch.long, device=device)
    with torch.inference_mode(), paged(model), survey() as found:
        model(input_ids=token, position_ids=token, use_cache=False)
    expected = getattr(config, "num_hidden_layers", len(found))
    if len(found) != expected:
        raise ModelReferenceError(
            "not every layer of this model uses transformers' attention interface",
            where=type(model).__name__,
            got=f"{len(found)} layers",
            expected=f"{expected}",
        )
    return found


def block_bytes(shapes: dict[int, LayerShape], dtype: torch.dtype) -> int:
    """Bytes of one block in all layers."""
    numbers = sum(2 * shape.num_heads * shape.width for shape in shapes.values())
    return numbers * BLOCK_SIZE * dtype.itemsize


class PagedForward:
    """Runs steps. One thread at a time.

    Args:
        model: in evaluation; its attention is changed from `open` to `close`.
        shapes: of `layer_shapes`.
        num_blocks: of each pool.
        adapters: whose layers the model has; None for the base only.
    """

    def __init__(
        self,
        model: Any,
        shapes: dict[int, LayerShape],
        num_blocks: int,
        adapters: EngineAdapters | None = None,
    ) -> None:
        self._model = model
        self._adapters = adapters
        first: nn.Parameter = next(model.parameters())
        self._device = first.device
        dtype = model.get_input_embeddings().weight.dtype
        self._pools = {
            layer: (
                _zeros((num_blocks, BLOCK_SIZE, shape.num_heads, shape.width), dtype, self._device),
                _zeros((num_blocks, BLOCK_SIZE, shape.num_heads, shape.width), dtype, self._device),
            )
            for layer, shape in shapes.items()
        }
        self._opened = contextlib.ExitStack()

    def open(self) -> None:
        """Give the model's attention to the engine, and its products of few rows."""
        self._opened.enter_context(paged(self._model))
        self._opened.enter_context(few_row_products(self._model))

    def release(self) -> None:
        """Give the model back what is its own."""
        self._opened.close()

    def close(self) -> None:
        """Give the model back as it was, and the memory of the pools."""
        self.release()
        self._pools.clear()

    def run(self, rows: Sequence[StepRow]) -> Wanted:
        """Compute a step.

        Args:
            rows: those of one adapter beside each other.

        Returns:
            Logits at every place of rows that want all, and at the last place of those whose last
            token is in the step.
        """
        step = _Arrays(rows)
        device = self._device
        tables = StepTables(
            pools=self._pools,
            slots=torch.from_numpy(step.slots).to(device),
            block_table=torch.from_numpy(step.block_table).to(device),
            query_starts=torch.from_numpy(step.query_starts).to(device),
            context_lengths=torch.from_numpy(step.context_lengths).to(device),
        )
        tokens = torch.from_numpy(step.tokens).to(device)[:, None]
        positions = torch.from_numpy(step.positions).to(device)[:, None]
        wanted = torch.tensor(step.wanted, dtype=torch.long, device=device)
        with contextlib.ExitStack() as inside:
            inside.enter_context(torch.inference_mode())
            if self._adapters is not None:
                inside.enter_context(
                    self._adapters.use(*_segments(rows, step.query_starts, step.wanted_starts))
                )
            inside.enter_context(in_step(tables))
            inside.enter_context(logits_only_at(self._model, wanted, torch.zeros_like(wanted)))
            logits: Tensor = self._model(
                input_ids=tokens, position_ids=positions, use_cache=False
            ).logits[0]
        return Wanted(logits, step.wanted_starts)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A pool. In a processor's memory its pages are taken as they are first written to."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # torch.zeros writes them all at once, which for a long context is seconds and gigabytes.
    num_bytes = math.prod(shape) * dtype.itemsize
    memory = torch.from_numpy(np.zeros(num_bytes + _ALIGNMENT, dtype=np.uint8))
    start = -memory.data_ptr() % _ALIGNMENT
    return memory[start : start + num_bytes].view(dtype).view(shape)


class _Arrays:
    """The numbers of a step, on the CPU."""

    def __init__(self, rows: Sequence[StepRow]) -> None:
        num_rows, num_tokens = len(rows), sum(row.count for row in rows)
        most_blocks = max((len(row.sequence.blocks) for row in rows), default=0)
        self.tokens = np.empty(num_tokens, dtype=np.int64)
        self.positions = np.empty(num_tokens, dtype=np.int64)
        self.slots = np.empty(num_tokens, dtype=np.int64)
        self.block_table = np.zeros((num_rows, most_blocks), dtype=np.int32)
        self.query_starts = np.zeros(num_rows + 1, dtype=np.int32)
        self.context_lengths = np.empty(num_rows, dtype=np.int32)
        self.wanted: list[int] = []
        self.wanted_starts = [0]
        start = 0
        for i, row in enumerate(rows):
            sequence, stop = row.sequence, row.start + row.count
            end = start + row.count
            self.tokens[start:end] = sequence.tokens[row.start : stop]
            places = np.arange(row.start, stop)
            self.positions[start:end] = places
            self.block_table[i, : len(sequence.blocks)] = sequence.blocks
            blocks = self.block_table[i, places // BLOCK_SIZE].astype(np.int64)
            self.slots[start:end] = blocks * BLOCK_SIZE + places % BLOCK_SIZE
            self.context_lengths[i] = stop
            self.query_starts[i + 1] = end
            if sequence.every_logit:
                self.wanted += range(start, end)
            elif row.is_last:
                self.wanted.append(end - 1)
            self.wanted_starts.append(len(self.wanted))
            start = end


def _segments(
    rows: Sequence[StepRow], starts: np.ndarray[Any, Any], wanted_starts: Sequence[int]
) -> tuple[list[Segment], list[Segment]]:
    """One segment for each adapter, of all tokens and of the wanted places."""
    tokens: list[Segment] = []
    wanted: list[Segment] = []
    first = 0
    for i, row in enumerate(rows):
        if i + 1 < len(rows) and rows[i + 1].sequence.adapter == row.sequence.adapter:
            continue
        held = row.sequence.held
        tokens.append((held, int(starts[first]), int(starts[i + 1])))
        wanted.append((held, wanted_starts[first], wanted_starts[i + 1]))
        first = i + 1
    return tokens, wanted
