"""The memory that training happens in: how much there may be, what is held, what was the most.

An accelerator has its own, and says when it is full. A processor's is the machine's: the
system would rather end the process than refuse it, so there the limit is one that was given,
and what is measured is the resident set (`ince.heap`).
"""

import contextlib
import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import nn

from ince.heap import PeakBytes, give_back, held_bytes, peak_within
from ince.heap import is_out_of_memory as _is_out_of_memory

__all__ = ["DeviceMemory", "OverLimitError", "is_out_of_memory", "memory_of"]


class OverLimitError(Exception):
    """A forward passed the limit and was ended there; for the one who set the limit to catch."""


class DeviceMemory(Protocol):
    """Memory of one kind."""

    @property
    def limit_bytes(self) -> int | None:
        """What may be held; None when nobody said."""
        ...

    @property
    def limit_name(self) -> str:
        """Where the limit comes from."""
        ...

    def held(self) -> int:
        """Bytes held now."""
        ...

    def peak(self) -> AbstractContextManager[PeakBytes]:
        """Measure the most that is held inside."""
        ...

    def release(self) -> None:
        """Give back what is not in use."""
        ...

    def stop_at_limit(self, model: nn.Module) -> AbstractContextManager[None]:
        """Inside, a forward of `model` that passes the limit raises, before it takes the rest.

        Raises:
            OverLimitError: or what the device raises, see `is_out_of_memory`.
        """
        ...


class _HostMemory:
    """Of this process: what it has resident."""

    limit_name = "train.memory"

    def __init__(self, limit_bytes: int | None) -> None:
        self.limit_bytes = limit_bytes

    def held(self) -> int:
        return held_bytes()

    def peak(self) -> AbstractContextManager[PeakBytes]:
        return peak_within()

    def release(self) -> None:
        gc.collect()
        give_back()

    @contextlib.contextmanager
    def stop_at_limit(self, model: nn.Module) -> Iterator[None]:
        limit = self.limit_bytes
        if limit is None:
            yield
            return

        def check(_module: nn.Module, _arguments: tuple[Any, ...]) -> None:
            if held_bytes() > limit:
                raise OverLimitError

        lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
        layers = {id(layer): layer for each in lists for layer in each}.values()
        handles = [layer.register_forward_pre_hook(check) for layer in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class _CudaMemory:
    """Of one GPU: what torch's allocator has given out."""

    def __init__(self, device: torch.device, budget_bytes: int | None) -> None:
        self._device = device
        free, total = torch.cuda.mem_get_info(device)
        available = free + torch.cuda.memory_reserved(device)
        self.limit_bytes: int | None = available
        self.limit_name = "free on the device"
        if budget_bytes is not None and budget_bytes < available:
            self.limit_bytes, self.limit_name = budget_bytes, "train.memory"
            # From here on the allocator itself refuses more.
            torch.cuda.set_per_process_memory_fraction(budget_bytes / total, device)

    def held(self) -> int:
        return torch.cuda.memory_allocated(self._device)

    @contextlib.contextmanager
    def peak(self) -> Iterator[PeakBytes]:
        found = PeakBytes()
        torch.cuda.reset_peak_memory_stats(self._device)
        try:
            yield found
        finally:
            found.num_bytes = torch.cuda.max_memory_allocated(self._device)

    def release(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()
        give_back()

    def stop_at_limit(self, model: nn.Module) -> AbstractContextManager[None]:  # noqa: ARG002
        return contextlib.nullcontext()  # the allocator refuses by itself


def memory_of(device: torch.device, budget_bytes: int | None) -> DeviceMemory:
    """The memory of `device`, of which at most `budget_bytes` may be used."""
    if device.type == "cuda":
        return _CudaMemory(device, budget_bytes)
    return _HostMemory(budget_bytes)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was refused, whoever refused it."""
    return isinstance(error, OverLimitError) or _is_out_of_memory(error)
