"""Loss on text the model has not seen: token-weighted, with a value for each document.

Logits are the largest tensor of a language model: for a vocabulary of 150,000 one row of
1,024 tokens takes 600 MB in float32. Only positions that predict a target need them, so a
hook in front of the output layer passes on those rows alone.

Shapes: B rows, L tokens, N targets, D width, V vocabulary.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ince.data import IGNORED, Batch, attention_mask
from ince.errors import DataError
from ince.infer import Parts, evaluating
from ince.models import attention_inputs, logits_only_at

__all__ = ["DocumentLoss", "LossResult", "heldout_loss", "target_losses"]

_ROWS_AT_ONCE = 256  # of logits in float32: 256 x 150,000 x 4 bytes = 150 MB


@dataclass(frozen=True)
class DocumentLoss:
    """Loss of one document: the sum over its targets, in nats."""

    source: str
    loss_sum: float
    num_targets: int

    @property
    def loss(self) -> float:
        """Mean over the targets, in nats."""
        return self.loss_sum / self.num_targets if self.num_targets else 0.0


@dataclass(frozen=True)
class LossResult:
    """Loss over a held-out set.

    Attributes:
        loss: mean over all targets, in nats; long documents weigh more.
        perplexity: exp of it.
        num_targets: tokens that were predicted.
        num_tokens: tokens that were read, padding left out.
        documents: one entry for each document, in the order of the batches.
    """

    loss: float
    perplexity: float
    num_targets: int
    num_tokens: int
    documents: tuple[DocumentLoss, ...] = field(repr=False)


def heldout_loss(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    progress: Callable[[int], None] | None = None,
    parts: Parts | None = None,
) -> LossResult:
    """Mean cross entropy of the batches' targets.

    Documents packed into one row do not see each other.

    Args:
        model: a causal language model; its mode and gradients stay as they were.
        batches: on any device; moved to the model's.
        progress: told the number of batches done.
        parts: how many rows a forward has where memory is short.

    Raises:
        DataError: there is no target in any batch.
        OutOfMemoryError: one row at a time does not fit into memory.
    """
    device = next(model.parameters()).device
    documents: list[DocumentLoss] = []
    num_tokens = 0
    parts = Parts(what="the held-out loss") if parts is None else parts
    with evaluating(model):
        for done, batch in enumerate(batches, start=1):
            # In parts only where that is needed: a batch that fits is taken as it is.
            for found in parts.of(
                range(len(batch.input_ids)),
                lambda rows, batch=batch: _document_losses(model, batch.of_rows(rows).to(device)),
            ):
                documents += found
            num_tokens += batch.num_tokens
            if progress is not None:
                progress(done)
    num_targets = sum(document.num_targets for document in documents)
    if num_targets == 0:
        raise DataError(
            "there is nothing to measure a loss on",
            got=f"{len(documents)} documents without a target",
            do="evaluate on rows with assistant turns, or set data.loss_on to all",
        )
    loss = math.fsum(document.loss_sum for document in documents) / num_targets
    return LossResult(
        loss=loss,
        perplexity=math.exp(min(loss, 700.0)),  # beyond, a float overflows
        num_targets=num_targets,
        num_tokens=num_tokens,
        documents=tuple(documents),
    )


def _document_losses(model: nn.Module, batch: Batch) -> list[DocumentLoss]:
    losses_N, index_N2 = target_losses(
        model,
        batch.input_ids,
        batch.labels,
        **attention_inputs(model, attention_mask(batch), batch.position_ids),
    )
    # Documents are numbered from 1; 0 is padding and what several share, without targets.
    documents_N = batch.document_ids[index_N2[:, 0], index_N2[:, 1]]
    size = len(batch.sources) + 1
    sums = losses_N.new_zeros(size).index_add_(0, documents_N, losses_N).tolist()
    counts = torch.bincount(documents_N, minlength=size).tolist()
    return [
        DocumentLoss(source, sums[number], counts[number])
        for number, source in enumerate(batch.sources, start=1)
    ]


@torch.no_grad()
def target_losses(
    model: nn.Module,
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    **inputs: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy of each target, computing logits at no other place.

    Args:
        model: in evaluation mode.
        input_ids: (B, L) int64.
        labels: (B, L) int64, the token at the place itself, or -100; the first is never a target.
        inputs: passed on to the model.

    Returns:
        (N,) losses in nats, computed in float32; and (N, 2) int64, row and place of each target.
    """
    index_N2 = (labels[:, 1:] != IGNORED).nonzero()
    index_N2[:, 1] += 1
    rows, places = index_N2[:, 0], index_N2[:, 1]
    if not len(index_N2):
        return torch.zeros(0, dtype=torch.float64, device=labels.device), index_N2
    with logits_only_at(model, rows, places - 1):
        output: Any = model(input_ids=input_ids, use_cache=False, **inputs)
    logits_NV: torch.Tensor = output.logits[0]
    targets_N = labels[rows, places]
    losses = [
        functional.cross_entropy(logits.float(), targets, reduction="none")
        for logits, targets in zip(
            logits_NV.split(_ROWS_AT_ONCE), targets_N.split(_ROWS_AT_ONCE), strict=True
        )
    ]
    summed = torch.cat(losses)
    # Sums over millions of tokens are taken in double where the device has it.
    return (summed if summed.device.type == "mps" else summed.double()), index_N2
