"""One optimizer step: micro-batches weighted by their targets, clipping, update."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ince.data import Row, collate
from ince.errors import TrainingError
from ince.optim import set_learning_rate
from ince.train.loss import target_loss

__all__ = ["StepResult", "micro_batches", "train_step"]


@dataclass(frozen=True)
class StepResult:
    """Of one step: mean loss over its targets in nats, gradient norm before clipping, counts."""

    loss: float
    grad_norm: float
    num_tokens: int
    num_targets: int


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


def _seed_of(seed: int, step: int) -> int:
    # Dropout of a step depends on seed and step alone, so resuming needs no generator state.
    return (seed * 1_000_003 + step * 7_919 + 17) % (2**63)


def train_step(
    model: nn.Module,
    rows: Sequence[Row],
    *,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    lr: float,
    max_grad_norm: float,
    micro_batch_tokens: int | None,
    pad_id: int,
    seed: int,
    step: int,
) -> StepResult:
    """Forward, backward and update for the rows of one step.

    Raises:
        TrainingError: the loss or the gradient is not finite; no parameter was changed.
    """
    device = next(iter(parameters.values())).device
    torch.manual_seed(_seed_of(seed, step))
    batches = [
        collate(group, pad_id, pad_to_multiple=64)
        for group in micro_batches(rows, micro_batch_tokens)
    ]
    num_targets = sum(batch.num_targets for batch in batches)
    total = 0.0
    for batch in batches:
        loss = target_loss(model, batch.to(device))
        (loss / num_targets).backward()
        total += loss.item()
    # A limit of 0 means no clipping; the norm is wanted all the same.
    limit = max_grad_norm if max_grad_norm > 0 else float("inf")
    grad_norm = torch.nn.utils.clip_grad_norm_(list(parameters.values()), limit).item()
    mean = total / num_targets
    if not (torch.isfinite(torch.tensor([mean, grad_norm])).all()):
        optimizer.zero_grad(set_to_none=True)
        sources = [source for batch in batches for source in batch.sources]
        raise TrainingError(
            f"loss or gradient is not finite at step {step + 1}",
            where=", ".join(sources[:5]),
            got=f"loss {mean}, gradient norm {grad_norm}",
            do="lower train.lr, or look at the rows named; the last checkpoint is good",
        )
    set_learning_rate(optimizer, lr)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(mean, grad_norm, sum(b.num_tokens for b in batches), num_targets)
