"""The tensors of one forward pass, and who may attend to whom in it.

Shapes: B rows, L tokens in a row, S segments in a row. Several examples may stand in one row,
as segments (`ince.data.prefixes`). Padding is segment 0; it is never recognized by its token,
since for many models the padding token is the stop token, which has to be learnt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ince.data.example import IGNORED

__all__ = ["IGNORED", "Batch", "attention_mask"]


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

    def of_rows(self, rows: Sequence[int]) -> "Batch":
        """Neighboring rows of the batch as one of their own; itself where `rows` are all."""
        if len(rows) == len(self.input_ids):
            return self
        kept = slice(rows[0], rows[-1] + 1)
        documents_BL = self.document_ids
        before = int(documents_BL[: rows[0]].max()) if rows[0] else 0
        last = int(documents_BL[kept].max())
        labels, segment_ids = self.labels[kept], self.segment_ids[kept]
        return Batch(
            input_ids=self.input_ids[kept],
            position_ids=self.position_ids[kept],
            segment_ids=segment_ids,
            sees=self.sees[kept],
            document_ids=(documents_BL[kept] - before).clamp(min=0),
            labels=labels,
            num_tokens=int((segment_ids != 0).sum()),
            num_targets=int((labels != IGNORED).sum()),
            sources=self.sources[before:last],
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
