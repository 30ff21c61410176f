"""How a kernel is started: the one place that knows Triton's launch options."""

from typing import Any

__all__ = ["start"]


def start(
    kernel: Any,
    grid: tuple[int, ...],
    *args: Any,
    num_warps: int = 4,
    num_stages: int = 2,
    contract: bool = False,
    **constants: Any,
) -> None:
    """Launch `kernel` on the current device, in `grid` programs.

    Args:
        kernel: a function under ``triton.jit``.
        grid: programs along up to three axes.
        args: its arguments in their order.
        num_warps, num_stages: as in Triton.
        contract: whether the compiler may make one operation of a product and a sum, which then
            rounds once. The reference rounds twice: where results must equal it, this must not.
        constants: its compile-time arguments.
    """
    kernel[grid](
        *args,
        **constants,
        num_warps=num_warps,
        num_stages=num_stages,
        enable_fp_fusion=contract,
    )
