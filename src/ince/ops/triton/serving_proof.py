"""What a kernel of serving must show on a device before it is used there.

Importing this needs no Triton; the kernel comes as an argument.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import ince.ops.reference as reference

__all__ = ["cases", "difference"]

# Of the largest result: a few roundings of the type, weights of values among them.
_TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


def difference(name: str, launch: Callable[..., Any], device: torch.device) -> str | None:
    """How `launch` on `device` differs from the reference on the CPU; None where it does not."""
    for dtype in (torch.bfloat16, torch.float32):
        for args in cases(name, dtype):
            found = _results(launch, [_placed(arg, device) for arg in args])
            wanted = _results(getattr(reference, name), args)
            for one, other in zip(found, wanted, strict=True):
                error = float((one.cpu().float() - other.float()).abs().max())
                limit = _TOLERANCE[dtype] * max(1.0, float(other.float().abs().max()))
                if not error <= limit:
                    return f"{name} in {dtype} is off by {error:.1e} where {limit:.1e} is rounding"
    return None


def _placed(arg: Any, device: torch.device) -> Any:
    if isinstance(arg, list):
        return [_placed(each, device) for each in arg]
    # A layout, the only table of 64-bit numbers in two axes, is read by the host.
    is_layout = isinstance(arg, Tensor) and arg.dtype == torch.int64 and arg.ndim == 2
    return arg.to(device) if isinstance(arg, Tensor) and not is_layout else arg


def _results(function: Callable[..., Any], args: list[Any]) -> list[Tensor]:
    """What it returns, or what it writes into: its first two tensors."""
    args = [arg.clone() if isinstance(arg, Tensor) else arg for arg in args]
    returned = function(*args)
    return args[:2] if returned is None else [returned]


def cases(name: str, dtype: torch.dtype) -> list[list[Any]]:
    """Arguments for an operator of serving: odd sizes, and both ways of each option."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    if name == "add_lora_segments_":
        num_in, num_out = 37, 70
        found: list[list[Any]] = []
        for second in (torch.float32, torch.bfloat16):
            first_parts = 18 * (num_in + num_out)
            blocks = [drawn(first_parts + 2 * num_out, dtype=torch.float32)]
            blocks.append(drawn(3 + num_in + num_out, dtype=second))
            b, turn = 18 * num_in, first_parts
            rows = [
                (1, 0, 2, 1, 3, 3 + num_in, -1, -1),
                (0, 3, 22, 18, 0, b, turn, turn + num_out),
                (0, 22, 22, 18, 0, b, -1, -1),
                (0, 22, 23, 0, -1, -1, -1, turn),
            ]
            found.append([drawn(24, num_out), 0.2 * drawn(24, num_in), blocks, torch.tensor(rows)])
        return found
    pools = [drawn(6, 4, 2, 20), drawn(6, 4, 2, 20)]
    if name == "write_kv_":
        k, v = drawn(2, 3, 20).transpose(0, 1), drawn(3, 2, 20)
        return [[*pools, k, v, torch.tensor([23, 0, 9])]]
    table = torch.tensor([[5, 0, 2], [1, 3, -1], [4, -1, -1]], dtype=torch.int32)
    lengths = torch.tensor([11, 7, 3], dtype=torch.int32)
    found = []
    for counts in ([0, 1, 2, 3], [0, 5, 5, 8]):
        starts = torch.tensor(counts, dtype=torch.int32)
        for window, softcap in ((0, 0.0), (3, 2.0)):
            q = drawn(counts[-1], 6, 20)
            found.append([q, *pools, table, starts, lengths, 0.3, window, softcap])
    return found
