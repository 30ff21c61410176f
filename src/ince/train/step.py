"""The two halves of an optimizer step: gradients of its micro-batches, and the update.

Micro-batches are weighted by their targets, so that any cut of the rows gives the gradient of
all of them at once. The first half changes gradients alone: it may be done again, cut another
way, as long as the second was not.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from ince.data import Batch, Row, collate
from ince.train.loss import target_loss
from ince.train.noise import embedding_noise

__all__ = ["StepGradient", "accumulate", "micro_batches"]


@dataclass(frozen=True)
class StepGradient:
    """What is known of a step whose gradients stand in its parameters, clipped.

    Attributes:
        loss: mean over the targets, in nats; not finite when a forward went wrong.
        grad_norm: before clipping.
        num_tokens, num_targets: of its rows.
        sources: where its examples come from.
        suspects: those of them in forwards whose loss was not finite; all when there was none.
    """

    loss: float
    grad_norm: float
    num_tokens: int
    num_targets: int
    sources: tuple[str, ...]
    suspects: tuple[str, ...]


def micro_batches(rows: Sequence[Row], micro_batch_tokens: int | None) -> list[list[Row]]:
    """Cut the rows of a step so that each forward has at most that many tokens, one row at least.

    Padding counts here: what bounds memory is the rectangle.
    """
    if micro_batch_tokens is None:
        return [list(rows)]
    groups: list[list[Row]] = []
    for row in rows:
        if groups:
            longest = max(r.num_tokens for r in (*groups[-1], row))
            if longest * (len(groups[-1]) + 1) <= micro_batch_tokens:
                groups[-1].append(row)
                continue
        groups.append([row])
    return groups


def _seed_of(seed: int, step: int, part: int = 0) -> int:
    # What is drawn in a step depends on these alone, so resuming needs no generator state.
    return (seed * 1_000_003 + step * 7_919 + part * 15_485_863 + 17) % (2**63)


def _noise(
    model: nn.Module, batch: Batch, alpha: float | None, seed: int
) -> AbstractContextManager[None]:
    if alpha is None:
        return nullcontext()
    return embedding_noise(model, batch, alpha=alpha, seed=seed)


def accumulate(
    model: nn.Module,
    rows: Sequence[Row],
    *,
    parameters: Mapping[str, nn.Parameter],
    max_grad_norm: float,
    micro_batch_tokens: int | None,
    pad_id: int,
    seed: int,
    step: int,
    neftune_alpha: float | None = None,
) -> StepGradient:
    """Forward and backward for the rows of one step; gradients are left clipped.

    Whatever gradients there were are dropped first, so that a call that failed half-way may
    be followed by another.

    Args:
        model: in training mode.
        rows: of the step, at least one.
        parameters: by name, those that learn.
        max_grad_norm: global norm to which gradients are scaled down; 0 leaves them alone.
        micro_batch_tokens: tokens of one forward, at most; None: all rows at once.
        pad_id: token that fills short rows.
        seed: of the run. step: counted from 0. Together they decide dropout and noise.
        neftune_alpha: noise on the embeddings (`ince.train.noise`); None: none.
    """
    device = next(iter(parameters.values())).device
    for parameter in parameters.values():
        parameter.grad = None
    torch.manual_seed(_seed_of(seed, step))
    batches = [
        collate(group, pad_id, pad_to_multiple=64)
        for group in micro_batches(rows, micro_batch_tokens)
    ]
    num_targets = sum(batch.num_targets for batch in batches)
    total = 0.0
    suspects: list[str] = []
    for number, batch in enumerate(batches):
        placed = batch.to(device)
        with _noise(model, placed, neftune_alpha, _seed_of(seed, step, number + 1)):
            loss = target_loss(model, placed)
        (loss / num_targets).backward()
        value = loss.item()
        total += value
        if not math.isfinite(value):
            suspects += batch.sources
    # A limit of 0 means no clipping; the norm is wanted all the same.
    limit = max_grad_norm if max_grad_norm > 0 else float("inf")
    grad_norm = torch.nn.utils.clip_grad_norm_(list(parameters.values()), limit).item()
    sources = tuple(source for batch in batches for source in batch.sources)
    return StepGradient(
        loss=total / num_targets,
        grad_norm=grad_norm,
        num_tokens=sum(batch.num_tokens for batch in batches),
        num_targets=num_targets,
        sources=sources,
        suspects=tuple(suspects) or sources,
    )
