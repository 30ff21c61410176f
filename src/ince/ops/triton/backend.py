"""Registration of the Triton kernels for CUDA devices, and what happens where they cannot run.

Triton is looked for at the first call on such a device, never at import. There it also proves
itself: a small tensor must come out equal to the reference to the bit, compiled for that device.
Where Triton is missing, cannot compile (it needs a C compiler) or does not pass, the reference
takes over: slower, equal, and said once in the log.
"""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

import ince.ops.reference as reference
from ince.errors import InceError
from ince.ops.absmax import DEQUANTIZE_ABSMAX, QUANTIZE_ABSMAX
from ince.ops.backends import BackendReport, is_reference_only, reporter
from ince.ops.four_bit import DEQUANTIZE_4BIT, QUANTIZE_4BIT
from ince.ops.linear import GEMV_4BIT, LINEAR_4BIT, LINEAR_4BIT_INPUT_GRAD

__all__ = ["first_of", "leave_to_reference", "status"]

_LOG = logging.getLogger("ince.ops")

_R = TypeVar("_R")

# Why a device does without the kernels, or None; for devices that were tried.
_reasons: dict[torch.device, str | None] = {}
# Kernels that failed later, on a device that had passed.
_failed: dict[tuple[torch.device, str], str] = {}


@reporter
def status() -> BackendReport:
    """What runs on CUDA devices, for `ince.ops.backends.report`."""
    reason = _import_error() if torch.cuda.is_available() else "no CUDA device"
    said = [text for text in (*_reasons.values(), *_failed.values()) if text is not None]
    if reason is None and said:
        reason = said[0]
    if reason is not None:
        return BackendReport("cuda", "reference", "plain PyTorch", reason)
    import triton

    return BackendReport("cuda", "triton", f"Triton {triton.__version__}")


def _import_error() -> str | None:
    try:
        import triton  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except (ImportError, OSError) as error:
        return f"Triton cannot be imported: {error}"
    return None


def _reason_against(device: torch.device) -> str | None:
    """Why the kernels cannot be used on `device`, found out by using them."""
    reason = _import_error()
    if reason is not None:
        return reason
    try:
        from ince.ops.triton.proof import difference

        return difference(device)
    except (torch.OutOfMemoryError, InceError):
        raise
    except Exception as error:
        # Compilers fail in many ways; none is a reason to fail where the reference would not.
        first_line = (str(error).splitlines() or [""])[0]
        return f"Triton cannot run here: {type(error).__name__}: {first_line}"


def _is_usable(device: torch.device) -> bool:
    if is_reference_only():
        return False
    if device not in _reasons:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            # Nothing can be tried while a graph is recorded; the reference can be recorded.
            return False
        reason = _reasons[device] = _reason_against(device)
        if reason is not None:
            _LOG.warning("%s: operators run on the reference: %s", device, reason)
    return _reasons[device] is None


def first_of(name: str, device: torch.device, fast: Callable[[], _R], slow: Callable[[], _R]) -> _R:
    """`fast`, or `slow` where the kernels cannot be used."""
    if (device, name) in _failed or not _is_usable(device):
        return slow()
    from triton.errors import TritonError

    try:
        return fast()
    except TritonError as error:
        first_line = (str(error).splitlines() or [""])[0]
        leave_to_reference(device, name, f"{name}: {type(error).__name__}: {first_line}")
        return slow()


def leave_to_reference(device: torch.device, name: str, reason: str) -> None:
    """Let an operator run on the reference from now on, and say so."""
    _failed[device, name] = reason
    _LOG.warning("%s: an operator runs on the reference: %s", device, reason)


@QUANTIZE_4BIT.backend("cuda")
def _quantize_4bit(
    weight: Tensor, blocksize: int, quant_type: str, scale_search: bool
) -> tuple[Tensor, Tensor]:
    args = (weight, blocksize, quant_type, scale_search)

    def fast() -> tuple[Tensor, Tensor]:
        from ince.ops.triton.launch import quantize_4bit

        return quantize_4bit(*args)

    return first_of("quantize_4bit", weight.device, fast, lambda: reference.quantize_4bit(*args))


@DEQUANTIZE_4BIT.backend("cuda")
def _dequantize_4bit(
    packed: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor | None,
    nested_offset: Tensor | None,
    blocksize: int,
    shape: Sequence[int],
    dtype: torch.dtype,
    quant_type: str,
) -> Tensor:
    args = (packed, absmax, nested_absmax, nested_offset, blocksize, shape, dtype, quant_type)

    def fast() -> Tensor:
        from ince.ops.triton.launch import dequantize_4bit

        return dequantize_4bit(*args)

    return first_of(
        "dequantize_4bit", packed.device, fast, lambda: reference.dequantize_4bit(*args)
    )


@QUANTIZE_ABSMAX.backend("cuda")
def _quantize_absmax(absmax: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    def fast() -> tuple[Tensor, Tensor, Tensor]:
        from ince.ops.triton.launch import quantize_absmax

        return quantize_absmax(absmax)

    return first_of(
        "quantize_absmax", absmax.device, fast, lambda: reference.quantize_absmax(absmax)
    )


@DEQUANTIZE_ABSMAX.backend("cuda")
def _dequantize_absmax(codes: Tensor, nested_absmax: Tensor, offset: Tensor) -> Tensor:
    args = (codes, nested_absmax, offset)

    def fast() -> Tensor:
        from ince.ops.triton.launch import dequantize_absmax

        return dequantize_absmax(*args)

    return first_of(
        "dequantize_absmax", codes.device, fast, lambda: reference.dequantize_absmax(*args)
    )


@LINEAR_4BIT.backend("cuda")
def _linear_4bit(
    x: Tensor,
    packed: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor | None,
    nested_offset: Tensor | None,
    bias: Tensor | None,
    blocksize: int,
    shape: Sequence[int],
    quant_type: str,
) -> Tensor:
    args = (x, packed, absmax, nested_absmax, nested_offset, bias, blocksize, shape, quant_type)

    def fast() -> Tensor:
        from ince.ops.triton.multiply import linear_4bit

        return linear_4bit(*args)

    return first_of("linear_4bit", x.device, fast, lambda: reference.linear_4bit(*args))


@GEMV_4BIT.backend("cuda")
def _gemv_4bit(
    x: Tensor,
    packed: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor | None,
    nested_offset: Tensor | None,
    bias: Tensor | None,
    blocksize: int,
    shape: Sequence[int],
    quant_type: str,
) -> Tensor:
    args = (x, packed, absmax, nested_absmax, nested_offset, bias, blocksize, shape, quant_type)

    def fast() -> Tensor:
        from ince.ops.triton.multiply import gemv_4bit

        return gemv_4bit(*args)

    return first_of("gemv_4bit", x.device, fast, lambda: reference.gemv_4bit(*args))


@LINEAR_4BIT_INPUT_GRAD.backend("cuda")
def _linear_4bit_input_grad(
    grad: Tensor,
    packed: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor | None,
    nested_offset: Tensor | None,
    blocksize: int,
    shape: Sequence[int],
    quant_type: str,
) -> Tensor:
    args = (grad, packed, absmax, nested_absmax, nested_offset, blocksize, shape, quant_type)

    def fast() -> Tensor:
        from ince.ops.triton.multiply import linear_4bit_input_grad

        return linear_4bit_input_grad(*args)

    return first_of(
        "linear_4bit_input_grad",
        grad.device,
        fast,
        lambda: reference.linear_4bit_input_grad(*args),
    )
