"""Which of a few launch settings is the fastest here, found at the first call of its kind.

It differs from ``triton.autotune`` in what it costs: that takes 256 MB of GPU memory to time
with, beside a model that may have filled it, and cannot run while a CUDA graph is recorded. This
takes as much as the second-level cache holds, or nothing where that is not free, and uses the
first setting during a recording. Settings are forgotten with the process.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from statistics import median

import torch

__all__ = ["Settings", "fastest"]

_REPEATS = 7

_found: dict[Hashable, "Settings"] = {}


@dataclass(frozen=True)
class Settings:
    """Sizes of a tile (all powers of two), and how it is run."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


def fastest(
    key: Hashable,
    candidates: Sequence[Settings],
    run: Callable[[Settings], None],
    device: torch.device,
) -> Settings:
    """The candidate with which `run` is quickest, timed once for each `key` and remembered.

    Args:
        key: what the choice depends on, beside the device.
        candidates: the first is taken where nothing can be timed.
        run: launches the kernel once; may be called many times.
        device: to run on, the current one.

    A candidate that needs more of a chip than it has is left out.
    """
    if device.type != "cuda" or len(candidates) == 1:
        return candidates[0]
    key = (device, key)
    if key not in _found:
        if torch.cuda.is_current_stream_capturing():
            return candidates[0]
        _found[key] = _timed(candidates, run, device)
    return _found[key]


def _timed(
    candidates: Sequence[Settings], run: Callable[[Settings], None], device: torch.device
) -> Settings:
    from triton.runtime.errors import OutOfResources

    flush = _cache_filler(device)
    best: tuple[float, Settings] | None = None
    refused: OutOfResources | None = None
    for settings in candidates:
        try:
            run(settings)
        except OutOfResources as error:
            refused = error
            continue
        seconds = _seconds(lambda settings=settings: run(settings), flush)
        if best is None or seconds < best[0]:
            best = (seconds, settings)
    if best is None:
        assert refused is not None
        raise refused
    return best[1]


def _seconds(run: Callable[[], None], flush: torch.Tensor | None) -> float:
    times: list[float] = []
    for _ in range(_REPEATS):
        if flush is not None:
            flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return median(times)


def _cache_filler(device: torch.device) -> torch.Tensor | None:
    """As many bytes as the second-level cache holds: written, they put a weight out of it."""
    size = torch.cuda.get_device_properties(device).L2_cache_size
    try:
        return torch.empty(size, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError:
        return None
