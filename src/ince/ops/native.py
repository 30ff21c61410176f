"""In which type a device multiplies quickly: what `auto` means where a precision is asked for.

Activations in 16 bits take half the memory, and on a device that is made for them half the time
or less. A processor without instructions for bfloat16 emulates it: on AVX2 a product takes ten
to fifty times as long as in float32. There float32 is both quicker and more exact.
"""

import torch

__all__ = ["native_dtype"]


def native_dtype(device: torch.device | str) -> torch.dtype:
    """bfloat16, or float32 on a processor that only emulates it.

    Args:
        device: on which products are made. Of a GPU nothing is asked: 16 bits pay on all.
    """
    if torch.device(device).type != "cpu":
        return torch.bfloat16
    return torch.bfloat16 if _multiplies_bfloat16() else torch.float32


def _multiplies_bfloat16() -> bool:
    """Whether PyTorch's products in bfloat16 have kernels of their own on this processor."""
    # The question PyTorch asks itself before it hands such a product to oneDNN.
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is None or bool(supported())
