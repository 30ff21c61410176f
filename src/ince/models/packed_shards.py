"""How the tensors of a packed model are spread over files, known before any is read.

`stream` finishes tensors in an order that follows from the files it reads. Written in that
order, a file is complete as soon as its last tensor is, and everything before it can be
forgotten: so a load that was cut off goes on after the last complete file.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ince.formats.writer import PlannedTensor
from ince.models.layout import Layout, Target
from ince.models.source import TensorSource
from ince.ops.codes import ABSMAX_BLOCKSIZE
from ince.quant import NF4Config

__all__ = ["Shard", "finishing_order", "packed_parts_of", "spread"]


@dataclass(frozen=True)
class Shard:
    """A file to be written: the model's tensors in it, each as one or several stored ones."""

    targets: Mapping[str, tuple[PlannedTensor, ...]]

    @property
    def plan(self) -> list[PlannedTensor]:
        """The stored tensors, in order."""
        return [planned for parts in self.targets.values() for planned in parts]

    @property
    def num_bytes(self) -> int:
        """Of all tensors."""
        return sum(planned.num_bytes for planned in self.plan)


def finishing_order(source: TensorSource, layout: Layout) -> list[Target]:
    """The targets in the order in which `stream` yields them."""
    place = {name: number for number, name in enumerate(source.order())}
    last = {
        target.name: max(place[piece.stored] for piece in target.pieces)
        for target in layout.targets.values()
    }
    return sorted(layout.targets.values(), key=lambda target: last[target.name])


def packed_parts_of(shape: Sequence[int], config: NF4Config) -> dict[str, PlannedTensor]:
    """The buffers of a weight of this shape, each under its own name."""
    num_weights = math.prod(shape)
    num_blocks = -(-num_weights // config.blocksize)
    sizes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "packed": (((num_weights + 1) // 2, 1), torch.uint8),
        "absmax": ((num_blocks,), torch.uint8 if config.double_quant else torch.float32),
    }
    if config.double_quant:
        sizes["nested_absmax"] = ((-(-num_blocks // ABSMAX_BLOCKSIZE),), torch.float32)
        sizes["nested_offset"] = ((), torch.float32)
    return {name: PlannedTensor(name, *size) for name, size in sizes.items()}


def spread(stored: Mapping[str, tuple[PlannedTensor, ...]], max_bytes: int) -> list[Shard]:
    """Files of at most `max_bytes`, or of one tensor of the model that is larger.

    Args:
        stored: tensors of the model, in order, and what is written of each.
        max_bytes: of the tensors of a file.
    """
    shards: list[dict[str, tuple[PlannedTensor, ...]]] = []
    left = 0
    for name, parts in stored.items():
        num_bytes = sum(planned.num_bytes for planned in parts)
        if not shards or num_bytes > left:
            shards.append({})
            left = max_bytes
        shards[-1][name] = parts
        left -= num_bytes
    return [Shard(targets) for targets in shards]
