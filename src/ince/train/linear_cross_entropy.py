"""The output layer and its cross-entropy as one function, over the targets in parts.

Logits are the largest activation there is: 2,048 targets over a vocabulary of 128,000 take 1 GB
in float32, and a loss that autograd differentiates holds three of them. Here a part of the rows
is taken to logits, to its loss and to its gradient at once, in one buffer; what stays is the
gradient of the hidden states.

Shapes: N targets, D width, V vocabulary.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ince.models.target_hidden import OutputHead
from ince.ops import cross_entropy, cross_entropy_grad_

__all__ = ["linear_cross_entropy"]

# Of logits at a time: large enough for products at full speed, small beside a layer.
_CHUNK_BYTES = 32 * 2**20
_LEAST_ROWS = 16


def linear_cross_entropy(hidden_ND: Tensor, head: OutputHead, targets_N: Tensor) -> Tensor:
    """Sum of the cross-entropy of the targets, in nats; a float32 scalar.

    Args:
        hidden_ND: what the output layer reads, of any float type.
        head: frozen: gradients go to the hidden states alone.
        targets_N: int64.
    """
    return cast(Tensor, _LinearCrossEntropy.apply(hidden_ND, head, targets_N))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, head: OutputHead, targets_N: Tensor) -> Tensor:
        weight_VD = head.weight()
        bias = None if head.bias is None else head.bias.to(hidden_ND.dtype)
        row_bytes = weight_VD.shape[0] * hidden_ND.element_size()
        num_rows = max(_LEAST_ROWS, _CHUNK_BYTES // row_bytes)
        wants_gradient = ctx.needs_input_grad[0]
        grad_ND = torch.empty_like(hidden_ND) if wants_gradient else None
        total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        for start in range(0, len(targets_N), num_rows):
            part = slice(start, start + num_rows)
            logits = torch.nn.functional.linear(hidden_ND[part], weight_VD, bias)
            if grad_ND is None:
                total += cross_entropy(logits, targets_N[part], head.softcap).sum()
            else:
                total += cross_entropy_grad_(logits, targets_N[part], 1.0, head.softcap)
                grad_ND[part] = logits @ weight_VD
            del logits  # before the next ones
        if grad_ND is not None:
            ctx.save_for_backward(grad_ND)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_ND,) = ctx.saved_tensors
        return grad_ND * grads[0].to(grad_ND.dtype), None, None
