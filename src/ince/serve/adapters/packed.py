"""`PackedAdapter`: an adapter as a step uses it, in one flat block of memory.

Every layer's A lies there as it is, B transposed with the scale in it, and what DoRA and biases
come to as two vectors (`ince.ops.add_lora_segments_`). Ranks are true ones: nothing is padded, and
layers that the adapter does not touch take nothing. So an adapter moves by one copy, and two
adapters of different ranks, targets and variants stand beside each other in one step.

`ince.serve.adapters.pack` makes it.

Shapes: L layers.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ince.lora.config import LoraConfig

__all__ = ["UNTOUCHED", "PackedAdapter"]

UNTOUCHED = (0, -1, -1, -1, -1)
"""In a table, the row of a layer that the adapter leaves alone."""


@dataclass(frozen=True, eq=False)
class PackedAdapter:
    """An adapter of a served model.

    Attributes:
        digest: of its files.
        block: flat, float32 or bfloat16.
        table: (L, 5) int64: rank, and where A, B, turn and shift begin; -1 where there is none.
        rank: the largest.
        config: of the file.
    """

    digest: str
    block: Tensor
    table: "np.ndarray[Any, np.dtype[np.int64]]"
    rank: int
    config: LoraConfig

    @property
    def num_bytes(self) -> int:
        """Of the block."""
        return self.block.numel() * self.block.element_size()

    def pinned(self) -> "PackedAdapter":
        """A copy in pinned memory, from which a GPU reads quickest."""
        return replace(self, block=self.block.pin_memory())

    def on(self, device: torch.device) -> "PackedAdapter":
        """Itself where it is there already; else a copy, begun but not waited for."""
        if self.block.device == device:
            return self
        return replace(self, block=self.block.to(device, non_blocking=True))
