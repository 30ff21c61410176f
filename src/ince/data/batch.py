"""Examples to tensors, and who may attend to whom.

Shapes: B rows, L tokens in a row. Several examples may stand in one row; `segment_ids` tells
them apart, and padding is segment 0. Padding is never recognized by its token, since for many
models the padding token is the stop token, which has to be learnt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ince.data.example import Example
from ince.data.packing import Row

__all__ = ["IGNORED", "Batch", "attention_mask", "block_diagonal_mask", "collate"]

IGNORED = -100
"""The label that carries no loss."""


@dataclass(frozen=True)
class Batch:
    """Tensors of one forward pass.

    Attributes:
        input_ids: (B, L) int64.
        position_ids: (B, L) int64, from 0 in each example; 0 on padding.
        segment_ids: (B, L) int64, examples of a row counted from 1; 0 on padding.
        labels: (B, L) int64. ``labels[b, t]`` is the token at t itself (not shifted), or
            `IGNORED`. The first token of an example is never a label: nothing of its own
            example comes before it.
        num_tokens: those that are not padding.
        num_targets: labels that carry loss.
        sources: where the examples come from, row by row.
    """

    input_ids: Tensor
    position_ids: Tensor
    segment_ids: Tensor
    labels: Tensor
    num_tokens: int
    num_targets: int
    sources: tuple[str, ...]

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on `device`."""
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            position_ids=self.position_ids.to(device),
            segment_ids=self.segment_ids.to(device),
            labels=self.labels.to(device),
        )


def collate(rows: Sequence[Row | Example], pad_id: int, *, pad_to_multiple: int = 8) -> Batch:
    """The tensors of some rows; an example by itself is a row of one.

    Args:
        rows: at least one, none of them empty.
        pad_id: token that fills rows to the length of the longest.
        pad_to_multiple: L is rounded up to a multiple of this.

    Raises:
        ValueError: no rows, or one without examples.
    """
    filled = [(row,) if isinstance(row, Example) else row.examples for row in rows]
    if not filled or not all(filled):
        raise ValueError("collate needs at least one row, and an example in each")
    longest = max(sum(example.num_tokens for example in row) for row in filled)
    length = -(-longest // pad_to_multiple) * pad_to_multiple
    shape = (len(filled), length)
    input_ids = torch.full(shape, pad_id, dtype=torch.int64)
    position_ids = torch.zeros(shape, dtype=torch.int64)
    segment_ids = torch.zeros(shape, dtype=torch.int64)
    labels = torch.full(shape, IGNORED, dtype=torch.int64)
    for b, row in enumerate(filled):
        start = 0
        for segment, example in enumerate(row, start=1):
            span = slice(start, start + example.num_tokens)
            tokens = torch.tensor(example.input_ids, dtype=torch.int64)
            targets = torch.tensor(example.targets, dtype=torch.bool)
            targets[0] = False
            input_ids[b, span] = tokens
            position_ids[b, span] = torch.arange(example.num_tokens)
            segment_ids[b, span] = segment
            labels[b, span] = tokens.masked_fill(~targets, IGNORED)
            start = span.stop
    return Batch(
        input_ids=input_ids,
        position_ids=position_ids,
        segment_ids=segment_ids,
        labels=labels,
        num_tokens=int((segment_ids != 0).sum()),
        num_targets=int((labels != IGNORED).sum()),
        sources=tuple(example.source for row in filled for example in row),
    )


def block_diagonal_mask(segment_ids: Tensor) -> Tensor:
    """Who attends to whom: earlier tokens of the same example, and oneself.

    Args:
        segment_ids: (B, L) integers as in `Batch`.

    Returns:
        (B, 1, L, L) bool, True where the query (third axis) may see the key (fourth). Padding
        sees itself alone: a row of nothing but False would make softmax return NaN.
    """
    length = segment_ids.shape[1]
    queries, keys = segment_ids[:, :, None], segment_ids[:, None, :]
    ones = torch.ones(length, length, dtype=torch.bool, device=segment_ids.device)
    seen = (queries == keys) & (queries != 0) & ones.tril()
    return (seen | torch.eye(length, dtype=torch.bool, device=segment_ids.device))[:, None]


def attention_mask(batch: Batch) -> Tensor:
    """`block_diagonal_mask` of a batch, on its device."""
    return block_diagonal_mask(batch.segment_ids)
