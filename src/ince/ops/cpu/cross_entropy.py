"""Cross-entropy on the CPU: a row of logits is read from memory once.

The sum over the vocabulary is taken in float32 pieces of 512 that are added in float64, that over
rows in float64.
"""

import torch
from torch import Tensor

import ince.ops.reference as reference
from ince.ops.cpu.library import Library, active
from ince.ops.cpu.rows import Rows, rows_of
from ince.ops.cross_entropy import CROSS_ENTROPY, CROSS_ENTROPY_GRAD_, CROSS_ENTROPY_INPUT_GRAD

__all__ = ["cross_entropy", "cross_entropy_grad_", "cross_entropy_input_grad"]


@CROSS_ENTROPY.backend("cpu")
def cross_entropy(logits: Tensor, targets: Tensor, softcap: float) -> Tensor:
    """See `ince.ops.cross_entropy`."""
    library = active()
    if library is None:
        return reference.cross_entropy(logits, targets, softcap)
    return _losses(library, rows_of(logits), targets, softcap)


@CROSS_ENTROPY_GRAD_.backend("cpu")
def cross_entropy_grad_(
    logits: Tensor, targets: Tensor, scale: float, softcap: float, weights: Tensor | None
) -> Tensor:
    """See `ince.ops.cross_entropy_grad_`."""
    library = active()
    if library is None:
        return reference.cross_entropy_grad_(logits, targets, scale, softcap, weights)
    rows = rows_of(logits)
    losses = _losses(library, rows, targets, softcap, scale, weights)
    if rows.tensor is not logits:
        logits.copy_(rows.tensor)
    return losses.sum(dtype=torch.float64).float()


@CROSS_ENTROPY_INPUT_GRAD.backend("cpu")
def cross_entropy_input_grad(
    logits: Tensor, targets: Tensor, softcap: float, weights: Tensor
) -> Tensor:
    """The gradient of losses that are summed with `weights`, by the logits."""
    grad = logits.clone(memory_format=torch.contiguous_format)
    cross_entropy_grad_(grad, targets, 1.0, softcap, weights)
    return grad


def _losses(
    library: Library,
    rows: Rows,
    targets: Tensor,
    softcap: float,
    scale: float | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Of each row; with a scale, `rows` become the gradient."""
    losses = torch.empty(rows.num_rows, dtype=torch.float32)
    targets = targets.contiguous()
    weights = None if weights is None else weights.contiguous()
    wrong_row = library.cross_entropy(
        rows.address,
        rows.stride,
        rows.dtype,
        targets.data_ptr(),
        rows.num_rows,
        rows.num_cols,
        softcap,
        scale or 0.0,
        None if weights is None else weights.data_ptr(),
        losses.data_ptr(),
        scale is not None,
        torch.get_num_threads(),
    )
    if wrong_row >= 0:
        reference.refuse_targets(targets, rows.num_cols)
    return losses
