"""The mask contract: what is learnt is checked after truncation, and again after packing.

The faults that it is for do not show in the loss: it looks healthy when every label is masked
but a few, when no reply ever learns to stop, when a packed example sees its neighbor. So

- `check_example`, on what truncation leaves: something is learnt, the first token is not, and
  the stop token of every turn that was kept whole is;
- `check_batch`, on the tensors that packing and padding make of examples: the same labels as
  the examples ask for, none of them more or fewer; each target right behind the token that
  precedes it in its own example; and each example seeing as many tokens as it has.

The second is a few comparisons of small integers, and runs on every batch that is collated.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ince.data.batch import Batch
from ince.data.example import IGNORED, Example
from ince.data.packing import Row
from ince.errors import DataError, ProofError, TemplateError

__all__ = ["check_batch", "check_example"]


def check_example(example: Example) -> None:
    """Refuse an example that would teach nothing, or a reply without its end.

    Raises:
        DataError: none of its tokens is to be learnt, or the first one is.
        TemplateError: the stop token of a turn that is learnt is not a target.
    """
    if len(example.targets) != example.num_tokens:
        raise DataError(
            "an example does not say of each token whether it is learnt",
            where=example.source,
            got=f"{len(example.targets)} marks",
            expected=f"{example.num_tokens}",
        )
    if not any(example.targets):
        raise DataError("no token of the example is to be learnt", where=example.source)
    if example.targets[0]:
        raise DataError(
            "the first token of an example is to be learnt, and nothing predicts it",
            where=example.source,
        )
    if not all(0 < stop < example.num_tokens and example.targets[stop] for stop in example.stops):
        raise TemplateError("a turn would not learn its stop token", where=example.source)


def check_batch(batch: Batch, rows: Sequence[Row]) -> None:
    """Check tensors against the examples they were made of.

    Args:
        batch: as collated.
        rows: what it was collated from, in that order.

    Raises:
        ProofError: a label, a position or what an example sees is not as the examples ask.
    """
    learnt_BL = batch.labels != IGNORED
    _check_labels(batch, learnt_BL, rows)
    _check_predecessors(batch, learnt_BL)
    _check_stops(learnt_BL, rows)
    _check_sight(batch, rows)


def _broken(what: str, sources: Sequence[str], got: str, expected: str) -> ProofError:
    return ProofError(
        f"packing broke the mask contract: {what}",
        where=", ".join(sources[:3]),
        got=got,
        expected=expected,
    )


def _check_labels(batch: Batch, learnt_BL: Tensor, rows: Sequence[Row]) -> None:
    # What nothing precedes cannot be predicted, and is not counted.
    wanted = sum(e.num_targets - e.targets[0] for row in rows for e in row.examples)
    found = int(learnt_BL.sum())
    if found != wanted or batch.num_targets != wanted:
        raise _broken(
            "labels were lost or made",
            batch.sources,
            f"{found} labels, counted as {batch.num_targets}",
            f"{wanted}",
        )
    if bool((learnt_BL & (batch.labels != batch.input_ids)).any()):
        raise _broken("a label is not its token", batch.sources, "another token", "the same")


def _check_predecessors(batch: Batch, learnt_BL: Tensor) -> None:
    """A target is predicted at the place before it: that must be its own example's."""
    if bool(learnt_BL[:, 0].any()):
        raise _broken("a row begins with a target", batch.sources, "a target", "context")
    segments, positions = batch.segment_ids, batch.position_ids
    follows = (segments[:, 1:] == segments[:, :-1]) & (positions[:, 1:] == positions[:, :-1] + 1)
    if bool((learnt_BL[:, 1:] & ~(follows & (segments[:, 1:] != 0))).any()):
        raise _broken(
            "a target does not follow its own context",
            batch.sources,
            "another example before it",
            "the token before it in its example",
        )


def _check_stops(learnt_BL: Tensor, rows: Sequence[Row]) -> None:
    rows_N: list[int] = []
    places_N: list[int] = []
    sources: list[str] = []
    for number, row in enumerate(rows):
        start = 0
        for segment in row.segments:
            if not segment.shared:
                example = row.examples[segment.example]
                for stop in example.stops:
                    rows_N.append(number)
                    # A stop that fell into a shared beginning is at no place of its own.
                    places_N.append(start + stop - segment.first if stop >= segment.first else 0)
                    sources.append(example.source)
            start += segment.last - segment.first
    if not rows_N:
        return
    learnt_N = learnt_BL[torch.tensor(rows_N), torch.tensor(places_N)]
    if not bool(learnt_N.all()):
        wrong = [source for source, on in zip(sources, learnt_N.tolist(), strict=True) if not on]
        raise _broken("a turn does not learn its stop token", wrong, "no label", "a label")


def _check_sight(batch: Batch, rows: Sequence[Row]) -> None:
    """Each example's last token sees as many tokens as the example has, at its last position."""
    num_segments = batch.sees.shape[-1]
    sizes_BS = torch.zeros(len(rows), num_segments, dtype=torch.int64)
    sizes_BS.scatter_add_(1, batch.segment_ids, torch.ones_like(batch.segment_ids))
    sizes_BS[:, 0] = 0  # padding
    seen_BS = (batch.sees * sizes_BS[:, None, :]).sum(-1)
    last_BS = torch.full_like(sizes_BS, -1).scatter_reduce_(
        1, batch.segment_ids, batch.position_ids, "amax"
    )
    expected_BS = torch.zeros_like(sizes_BS)
    own_BS = torch.zeros_like(sizes_BS, dtype=torch.bool)
    for number, row in enumerate(rows):
        own = [(i, s) for i, s in enumerate(row.segments, start=1) if not s.shared]
        at = torch.tensor([i for i, _ in own])
        expected_BS[number, at] = torch.tensor([row.examples[s.example].num_tokens for _, s in own])
        own_BS[number, at] = True
    wrong_BS = own_BS & ((seen_BS != expected_BS) | (last_BS + 1 != expected_BS))
    if bool(wrong_BS.any()):
        row, segment = (int(i) for i in wrong_BS.nonzero()[0])
        example = rows[row].examples[rows[row].segments[segment - 1].example]
        raise _broken(
            "an example does not see itself and nothing else",
            [example.source],
            f"{int(seen_BS[row, segment])} tokens, the last at position "
            f"{int(last_BS[row, segment])}",
            f"{example.num_tokens} tokens",
        )
