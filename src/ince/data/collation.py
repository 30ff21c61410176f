"""Examples, alone or packed, to the tensors of a batch: checked against the examples at once."""

from collections.abc import Sequence

import torch

from ince.data.batch import Batch
from ince.data.contract import check_batch
from ince.data.example import IGNORED, Example
from ince.data.packing import Row

__all__ = ["collate"]


def collate(rows: Sequence[Example | Row], pad_id: int, *, pad_to_multiple: int = 8) -> Batch:
    """One row of tensors for each entry of `rows`: an example, or examples packed together.

    Args:
        rows: at least one, none of them empty.
        pad_id: token that fills rows to the length of the longest.
        pad_to_multiple: L is rounded up to a multiple of this.

    Raises:
        ValueError: no rows, or one without examples.
        ProofError: the batch does not teach what its examples ask for (`ince.data.contract`).
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
        # Tokens become a tensor once for a row: one for each segment would take longer.
        ids: list[int] = []
        targets: list[bool] = []
        for number, segment in enumerate(row.segments, start=1):
            example = row.examples[segment.example]
            begin = len(ids)
            ids += example.input_ids[segment.first : segment.last]
            targets += example.targets[segment.first : segment.last]
            if segment.first == 0:
                targets[begin] = False
            # Parents come first, so what a parent sees is known already.
            sees[b, number] = sees[b, segment.parent + 1]
            sees[b, number, number] = True
        firsts_S = torch.tensor([segment.first for segment in row.segments])
        lengths_S = torch.tensor([segment.last - segment.first for segment in row.segments])
        documents_S = torch.tensor(
            [0 if s.shared else num_documents + s.example + 1 for s in row.segments]
        )
        segments = torch.arange(len(row.segments)).repeat_interleave(lengths_S)
        starts_S = lengths_S.cumsum(0) - lengths_S
        n = len(ids)
        input_ids[b, :n] = torch.tensor(ids)
        labels[b, :n] = input_ids[b, :n].masked_fill(~torch.tensor(targets), IGNORED)
        segment_ids[b, :n] = segments + 1
        position_ids[b, :n] = torch.arange(n) + (firsts_S - starts_S)[segments]
        document_ids[b, :n] = documents_S[segments]
        num_documents += len(row.examples)
    batch = Batch(
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
    check_batch(batch, filled)
    return batch
