"""Gated activations on a GPU, forward and in-place backward; see `ince.ops.gated`.

Elementwise, in float32, rounded once. Both kinds of GELU keep the digits of large negative
arguments, as the reference does. Importing this needs Triton.
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

from ince.ops.gaps import copy_back
from ince.ops.triton.start import start

__all__ = ["gated_activation", "gated_activation_backward_", "gated_activation_grad"]

_SIZE = 1024

TWICE: tl.constexpr = tl.constexpr(1.5957691216057308)  # 2 sqrt(2 / pi)
CUBIC: tl.constexpr = tl.constexpr(0.044715)


@triton.jit
def _sigmoid(x: tl.tensor) -> tl.tensor:
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _upper_tail(z: tl.tensor) -> tl.tensor:
    """erfc(z) * exp(z²) / 2 for z >= 0: the polynomial of the CPU's kernels, halved."""
    t = 1.0 / (1.0 + z * 0.5)
    p = t * -0.0593863502 + 0.286123484
    p = p * t - 0.490405560
    p = p * t + 0.281732589
    p = p * t - 0.0291482229
    p = p * t + 0.203752473
    p = p * t + 0.242835104
    p = p * t + 0.282412112
    p = p * t + 0.282084346
    return p * t * 0.5


@triton.jit
def _bell(x: tl.tensor) -> tl.tensor:
    """exp(-x² / 2), its square in two parts: the first, of twelve bits, is exact."""
    size = tl.minimum(tl.abs(x), 20.0)  # all is decided long before
    head = (size.to(tl.int32, bitcast=True) & -4096).to(tl.float32, bitcast=True)
    return tl.exp(head * head * -0.5) * tl.exp((size - head) * (size + head) * -0.5)


@triton.jit
def share(x: tl.tensor, KIND: tl.constexpr) -> tl.tensor:
    """act(x) / x, of float32."""
    if KIND == "gelu":
        tail = _upper_tail(tl.minimum(tl.abs(x), 20.0) * 0.7071067811865476) * _bell(x)
        part = tl.where(x < 0, tail, 1.0 - tail)
    elif KIND == "gelu_tanh":
        part = _sigmoid(x * TWICE * (1.0 + x * x * CUBIC))
    else:
        part = _sigmoid(x)
    return part


@triton.jit
def slope(x: tl.tensor, part: tl.tensor, KIND: tl.constexpr) -> tl.tensor:
    """act'(x), of x and its share."""
    if KIND == "gelu":
        found = part + x * _bell(x) * 0.3989422804014327
    elif KIND == "gelu_tanh":
        steepness = (1.0 + x * x * (3.0 * CUBIC)) * TWICE
        found = part * (1.0 + x * steepness * (1.0 - part))
    else:
        found = part * (1.0 + x * (1.0 - part))
    return found


@triton.jit
def gated_kernel(
    gate_ptr: tl.tensor,
    up_ptr: tl.tensor,
    h_ptr: tl.tensor,
    num_elements: tl.tensor,
    KIND: tl.constexpr,
    SIZE: tl.constexpr,
) -> None:
    """The product h = act(gate) * up."""
    index = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    mask = index < num_elements
    gate = tl.load(gate_ptr + index, mask=mask, other=0.0).to(tl.float32)
    h = gate * share(gate, KIND) * tl.load(up_ptr + index, mask=mask, other=0.0).to(tl.float32)
    tl.store(h_ptr + index, h.to(h_ptr.dtype.element_ty), mask=mask)


@triton.jit
def gated_grad_kernel(
    dh_ptr: tl.tensor,
    gate_ptr: tl.tensor,
    up_ptr: tl.tensor,
    h_out_ptr: tl.tensor,
    gate_out_ptr: tl.tensor,
    up_out_ptr: tl.tensor,
    num_elements: tl.tensor,
    KIND: tl.constexpr,
    WITH_H: tl.constexpr,
    SIZE: tl.constexpr,
) -> None:
    """Both gradients, and with WITH_H the product; where it writes may be where it read."""
    index = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    mask = index < num_elements
    dh = tl.load(dh_ptr + index, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + index, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + index, mask=mask, other=0.0).to(tl.float32)
    part = share(gate, KIND)
    value = gate * part
    kind = gate_out_ptr.dtype.element_ty
    tl.store(gate_out_ptr + index, (dh * up * slope(gate, part, KIND)).to(kind), mask=mask)
    tl.store(up_out_ptr + index, (dh * value).to(kind), mask=mask)
    if WITH_H:
        tl.store(h_out_ptr + index, (value * up).to(kind), mask=mask)


def gated_activation(gate: Tensor, up: Tensor, kind: str) -> Tensor:
    """See `ince.ops.gated_activation`."""
    gate, up = gate.contiguous(), up.contiguous()
    h = gate.new_empty(gate.shape)
    if h.numel():
        with torch.cuda.device_of(h):
            start(
                gated_kernel, _grid(h), gate, up, h, h.numel(), KIND=kind, SIZE=_SIZE, num_warps=4
            )
    return h


def gated_activation_backward_(dh: Tensor, gate: Tensor, up: Tensor, kind: str) -> None:
    """See `ince.ops.gated_activation_backward_`."""
    flat = [tensor.contiguous() for tensor in (dh, gate, up)]
    _grads(flat, flat, kind, with_h=True)
    copy_back((dh, gate, up), flat)


def gated_activation_grad(dh: Tensor, gate: Tensor, up: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """The gradients of `ince.ops.gated_activation`, in new memory."""
    flat = [tensor.contiguous() for tensor in (dh, gate, up)]
    grads = [flat[0], torch.empty_like(flat[1]), torch.empty_like(flat[2])]
    _grads(flat, grads, kind, with_h=False)
    return grads[1], grads[2]


def _grads(read: list[Tensor], written: list[Tensor], kind: str, *, with_h: bool) -> None:
    if not read[0].numel():
        return
    with torch.cuda.device_of(read[0]):
        start(
            gated_grad_kernel,
            _grid(read[0]),
            *read,
            *written,
            read[0].numel(),
            KIND=kind,
            WITH_H=with_h,
            SIZE=_SIZE,
            num_warps=4,
        )


def _grid(tensor: Tensor) -> tuple[int]:
    return (triton.cdiv(tensor.numel(), _SIZE),)
