"""Gated activations on the CPU, each in one pass over its tensors."""

import torch
from torch import Tensor

import ince.ops.reference as reference
from ince.ops.cpu.library import active
from ince.ops.cpu.rows import rows_of
from ince.ops.gated import (
    ACTIVATIONS,
    GATED_ACTIVATION,
    GATED_ACTIVATION_BACKWARD_,
    GATED_ACTIVATION_GRAD,
)

__all__ = ["gated_activation", "gated_activation_backward_", "gated_activation_grad"]

# Numbers of the kinds, as in kernels/training.h.
_KINDS = {kind: number for number, kind in enumerate(ACTIVATIONS)}


@GATED_ACTIVATION.backend("cpu")
def gated_activation(gate: Tensor, up: Tensor, kind: str) -> Tensor:
    """See `ince.ops.gated_activation`."""
    library = active()
    if library is None:
        return reference.gated_activation(gate, up, kind)
    h = torch.empty(gate.shape, dtype=gate.dtype)
    gates, ups = rows_of(gate), rows_of(up)
    library.gated(
        gates.address,
        gates.stride,
        ups.address,
        ups.stride,
        gates.dtype,
        _KINDS[kind],
        gates.num_rows,
        gates.num_cols,
        h.data_ptr(),
        torch.get_num_threads(),
    )
    return h


@GATED_ACTIVATION_BACKWARD_.backend("cpu")
def gated_activation_backward_(dh: Tensor, gate: Tensor, up: Tensor, kind: str) -> None:
    """See `ince.ops.gated_activation_backward_`."""
    library = active()
    if library is None:
        reference.gated_activation_backward_(dh, gate, up, kind)
        return
    all_rows = [rows_of(tensor) for tensor in (dh, gate, up)]
    library.gated_grad(
        *(part for rows in all_rows for part in (rows.address, rows.stride)),
        all_rows[0].dtype,
        _KINDS[kind],
        all_rows[0].num_rows,
        all_rows[0].num_cols,
        torch.get_num_threads(),
    )
    for rows, tensor in zip(all_rows, (dh, gate, up), strict=True):
        if rows.tensor is not tensor:
            tensor.copy_(rows.tensor)


@GATED_ACTIVATION_GRAD.backend("cpu")
def gated_activation_grad(dh: Tensor, gate: Tensor, up: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """The gradients of `ince.ops.gated_activation`, in new memory."""
    d_gate, d_up = (x.clone(memory_format=torch.contiguous_format) for x in (gate, up))
    gated_activation_backward_(dh.clone(), d_gate, d_up, kind)
    return d_gate, d_up
