"""Cross-entropy of rows of logits on a GPU: a program for each row, in float32.

The first pass over a row keeps the largest logit and the sum of exponentials so far; the second
writes the gradient over the logits. Sums are taken in another order than the reference's, so
results equal its within rounding. Importing this needs Triton.
"""

# Triton's language is typed by what it compiles to, not by annotations.
# pyright: reportUnknownParameterType=false, reportUnknownVariableType=false
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from ince.ops.cross_entropy import IGNORED
from ince.ops.triton.start import start

__all__ = ["cross_entropy", "cross_entropy_grad_", "cross_entropy_input_grad"]

# Logits that a program holds at a time, at most.
_COLS = 8192

NO_LOSS: tl.constexpr = tl.constexpr(IGNORED)


@triton.jit
def _tanh(x: tl.tensor) -> tl.tensor:
    """Small arguments by their series, which keeps their digits."""
    square = x * x
    small = x - x * square * (0.33333334 - square * (0.13333334 - square * 0.053968254))
    tail = tl.exp(-2.0 * tl.abs(x))
    large = (1.0 - tail) / (1.0 + tail)
    return tl.where(tl.abs(x) < 0.125, small, tl.where(x < 0, -large, large))


@triton.jit
def _capped(logits: tl.tensor, softcap: tl.tensor, CAPPED: tl.constexpr) -> tl.tensor:
    z = logits.to(tl.float32)
    if CAPPED:
        z = _tanh(z / softcap) * softcap
    return z


@triton.jit
def cross_entropy_kernel(
    logits_ptr: tl.tensor,
    target_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    loss_ptr: tl.tensor,
    grad_ptr: tl.tensor,
    V: tl.tensor,
    scale: tl.tensor,
    softcap: tl.tensor,
    CAPPED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    LOSS: tl.constexpr,
    GRAD: tl.constexpr,
    COLS: tl.constexpr,
) -> None:
    """A row's loss, and with GRAD its gradient, which may be where the logits are."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * V
    target = tl.load(target_ptr + row)
    most = tl.full((COLS,), float("-inf"), tl.float32)
    total = tl.zeros((COLS,), tl.float32)
    for first in range(0, V, COLS):
        col = first + tl.arange(0, COLS)
        logits = tl.load(logits_ptr + col, mask=col < V, other=float("-inf"))
        z = tl.where(col < V, _capped(logits, softcap, CAPPED), float("-inf"))
        new = tl.maximum(most, z, propagate_nan=tl.PropagateNan.ALL)
        # Where nothing but -inf was seen, the difference of two would be no number.
        base = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp(most - base) + tl.exp(z - base)
        most = new
    peak = tl.max(most, 0)
    base = tl.where(peak == float("-inf"), 0.0, peak)
    total_of_row = tl.sum(total * tl.exp(most - base), 0)
    factor = scale
    if WEIGHTED:
        weight = tl.load(weight_ptr + row)
        factor = scale * weight
    if LOSS:
        inside = (target >= 0) & (target < V)
        logit = tl.load(logits_ptr + target, mask=inside, other=0.0)
        loss = tl.log(total_of_row) + peak - _capped(logit, softcap, CAPPED)
        loss = tl.where(inside, loss, float("nan"))
        if WEIGHTED:
            loss = loss * weight
        tl.store(loss_ptr + row, tl.where(target == NO_LOSS, 0.0, loss))
    if GRAD:
        grad_ptr += row * V
        has_loss = target != NO_LOSS
        place = tl.minimum(tl.maximum(target, 0), V - 1)
        # Every thread has read what it needs of the row before another writes there.
        tl.debug_barrier()
        for first in range(0, V, COLS):
            col = first + tl.arange(0, COLS)
            z = _capped(tl.load(logits_ptr + col, mask=col < V, other=0.0), softcap, CAPPED)
            grad = tl.exp(z - base) / total_of_row
            grad = (grad - tl.where(col == place, 1.0, 0.0)) * factor
            if CAPPED:
                grad = grad * (1.0 - (z / softcap) * (z / softcap))
            grad = tl.where(has_loss, grad, 0.0)
            tl.store(grad_ptr + col, grad.to(grad_ptr.dtype.element_ty), mask=col < V)


def cross_entropy(logits: Tensor, targets: Tensor, softcap: float) -> Tensor:
    """See `ince.ops.cross_entropy`."""
    losses = logits.new_zeros((logits.shape[0],), dtype=torch.float32)
    _run(logits.contiguous(), targets, None, losses, None, 1.0, softcap)
    return losses


def cross_entropy_grad_(
    logits: Tensor, targets: Tensor, scale: float, softcap: float, weights: Tensor | None
) -> Tensor:
    """See `ince.ops.cross_entropy_grad_`."""
    rows = logits.contiguous()
    losses = logits.new_zeros((logits.shape[0],), dtype=torch.float32)
    _run(rows, targets, weights, losses, rows, scale, softcap)
    if rows is not logits:
        logits.copy_(rows)
    return losses.sum(dtype=torch.float64).float()


def cross_entropy_input_grad(
    logits: Tensor, targets: Tensor, softcap: float, weights: Tensor
) -> Tensor:
    """The gradient of losses that are summed with `weights`, by the logits."""
    logits = logits.contiguous()
    grad = torch.empty_like(logits)
    _run(logits, targets, weights, None, grad, 1.0, softcap)
    return grad


def _run(
    logits: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    losses: Tensor | None,
    grad: Tensor | None,
    scale: float,
    softcap: float,
) -> None:
    num_rows, num_classes = logits.shape
    if not logits.numel():
        return
    cols = min(triton.next_power_of_2(num_classes), _COLS)
    with torch.cuda.device_of(logits):
        start(
            cross_entropy_kernel,
            (num_rows,),
            logits,
            targets.contiguous(),
            None if weights is None else weights.contiguous(),
            losses,
            grad,
            num_classes,
            scale,
            softcap,
            CAPPED=bool(softcap),
            WEIGHTED=weights is not None,
            LOSS=losses is not None,
            GRAD=grad is not None,
            COLS=cols,
            num_warps=max(1, min(16, cols // 256)),
        )
