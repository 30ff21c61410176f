"""Examples to tensors, and who may attend to whom.

Shapes: B rows, L tokens in a row, S segments in a row. Several examples may stand in one row,
as segments (`ince.data.prefixes`). Padding is segment 0; it is never recognized by its token,
since for many models the padding token is the stop token, which has to be learnt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ince.data.example import Example
from ince.data.packing import Row

__all__ = ["IGNORED", "Batch", "attention_mask", "collate"]

IGNORED = -100
"""The label that carries no loss."""


@dataclass(frozen=True)
class Batch:
    """Tensors of one forward pass.

    Attributes:
        input_ids: (B, L) int64.
        position_ids: (B, L) int64, from 0 in each example; 0 on padding.
        segment_ids: (B, L) int64, segments of a row counted from 1; 0 on padding.
        sees: (B, S + 1, S + 1) bool: a token of segment i may see earlier tokens of segment j.
        document_ids: (B, L) int64, examples of the batch counted from 1, as in `sources`;
            0 on padding and on what several examples share.
        labels: (B, L) int64. ``labels[b, t]`` is the token at t itself (not shifted), or
            `IGNORED`. The token before it in the row is the one before it in its example.
        num_tokens: those that are not padding.
        num_targets: labels that carry loss.
        sources: where the examples come from.
    """

    input_ids: Tensor
    position_ids: Tensor
    segment_ids: Tensor
    sees: Tensor
    document_ids: Tensor
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
            sees=self.sees.to(device),
            document_ids=self.document_ids.to(device),
            labels=self.labels.to(device),
        )


def collate(rows: Sequence[Example | Row], pad_id: int, *, pad_to_multiple: int = 8) -> Batch:
    """One row of tensors for each entry of `rows`: an example, or examples packed together.

    Args:
        rows: at least one, none of them empty.
        pad_id: token that fills rows to the length of the longest.
        pad_to_multiple: L is rounded up to a multiple of this.

    Raises:
        ValueError: no rows, or one without examples.
    """
    filled = [Row((row,)) if isinstance(row, Example) else row for row in rows]
    if not filled or not all(row.examples for row in filled):
        raise ValueError("collate needs at least one row, and an example in each")
    longest = max(row.num_tokens for row in filled)
    shape = (len(filled), -(-longest // pad_to_multiple) * pad_to_multiple)
    num_segments = max(len(row.segments) for row in filled)
    input_ids = torch.full(shape, pad_id, dtype=torch.int64)
    position_ids = torch.zeros(shape, dtype=torch.int64)
    segment_ids = torch.zeros(shape, dtype=torch.int64)
    document_ids = torch.zeros(shape, dtype=torch.int64)
    labels = torch.full(shape, IGNORED, dtype=torch.int64)
    sees = torch.zeros(len(filled), num_segments + 1, num_segments + 1, dtype=torch.bool)
    num_documents = 0
    for b, row in enumerate(filled):
        start = 0
        for number, segment in enumerate(row.segments, start=1):
            example = row.examples[segment.example]
            part = slice(segment.first, segment.last)
            span = slice(start, start + segment.last - segment.first)
            tokens = torch.tensor(example.input_ids[part], dtype=torch.int64)
            targets = torch.tensor(example.targets[part], dtype=torch.bool)
            if segment.first == 0:
                targets[0] = False
            input_ids[b, span] = tokens
            position_ids[b, span] = torch.arange(segment.first, segment.last)
            segment_ids[b, span] = number
            labels[b, span] = tokens.masked_fill(~targets, IGNORED)
            if not segment.shared:
                document_ids[b, span] = num_documents + segment.example + 1
            # Parents come first, so what a parent sees is known already.
            sees[b, number] = sees[b, segment.parent + 1]
            sees[b, number, number] = True
            start = span.stop
        num_documents += len(row.examples)
    return Batch(
        input_ids=input_ids,
        position_ids=position_ids,
        segment_ids=segment_ids,
        sees=sees,
        document_ids=document_ids,
        labels=labels,
        num_tokens=int((segment_ids != 0).sum()),
        num_targets=int((labels != IGNORED).sum()),
        sources=tuple(example.source for row in filled for example in row.examples),
    )


def attention_mask(batch: Batch) -> Tensor:
    """Who attends to whom: earlier tokens of the same example, shared ones included, and oneself.

    Returns:
        (B, 1, L, L) bool, True where the query (third axis) may see the key (fourth). Padding
        sees itself alone: a row of nothing but False would make softmax return NaN.
    """
    segments_BL = batch.segment_ids
    length, device = segments_BL.shape[1], segments_BL.device
    rows_B11 = torch.arange(len(segments_BL), device=device)[:, None, None]
    seen_BLL = batch.sees[rows_B11, segments_BL[:, :, None], segments_BL[:, None, :]]
    earlier_LL = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    oneself_LL = torch.eye(length, dtype=torch.bool, device=device)
    return ((seen_BLL & earlier_LL) | oneself_LL)[:, None]
