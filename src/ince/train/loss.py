"""Cross-entropy where there is something to learn, and nowhere else."""

from torch import Tensor, nn
from torch.nn import functional as F

from ince.data import IGNORED, Batch, attention_mask
from ince.models import attention_argument, logits_only_at

__all__ = ["target_loss"]


def target_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Sum of the cross-entropy over the targets of `batch`, in nats; a float32 scalar.

    Divide by the number of targets of the whole optimizer step, not of this batch: that is
    what makes accumulation equal to one large batch.

    Args:
        model: a causal language model, with or without adapters.
        batch: with at least one target.
    """
    # The token at a place is predicted at the one before it.
    rows_N, before_N = (batch.labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    with logits_only_at(model, rows_N, before_N):
        output = model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=attention_argument(model, attention_mask(batch), batch.position_ids),
            use_cache=False,
        )
    targets_N = batch.labels[rows_N, before_N + 1]
    return F.cross_entropy(output.logits[0].float(), targets_N, reduction="sum")
