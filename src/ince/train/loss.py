"""Cross-entropy where there is something to learn, and nowhere else."""

from torch import Tensor, nn
from torch.nn import functional as F

from ince.data import IGNORED, Batch, attention_mask
from ince.models import attention_inputs, hidden_only_at, logits_only_at, output_head
from ince.train.linear_cross_entropy import linear_cross_entropy

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
    targets_N = batch.labels[rows_N, before_N + 1]
    inputs = {
        "input_ids": batch.input_ids,
        **attention_inputs(model, attention_mask(batch), batch.position_ids),
        "use_cache": False,
    }
    head = output_head(model)
    if head is not None:
        with hidden_only_at(model, rows_N, before_N) as hidden:
            model(**inputs)
        return linear_cross_entropy(hidden[0], head, targets_N)
    with logits_only_at(model, rows_N, before_N):
        output = model(**inputs)
    return F.cross_entropy(output.logits[0].float(), targets_N, reduction="sum")
