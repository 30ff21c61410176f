"""GPUs as torch sees them; and when it sees none, why.

Asking a GPU for its free memory makes this process a user of it for as long as it lives: that
is for a program that ends soon after, not for one that goes on.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

from ince.environment.unknown import Unknown, ask

__all__ = ["Accelerator", "Accelerators", "read_accelerators"]

_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Accelerator:
    """A device that torch can compute on.

    Attributes:
        device: ``cuda:0``, …, or ``mps``.
        name: as it calls itself.
        total_bytes: of its memory.
        free_bytes: of it, for all programs together.
        compute_capability: ``9.0``; of AMD's the name of the architecture; None elsewhere.
    """

    device: str
    name: str | Unknown
    total_bytes: int | Unknown
    free_bytes: int | Unknown
    compute_capability: str | Unknown | None


@dataclass(frozen=True)
class Accelerators:
    """What there is.

    Attributes:
        devices: in torch's order.
        runtime: what torch was built for, such as ``CUDA 12.8``; None for no GPU.
        none_because: why `devices` is empty; None when it is not.
    """

    devices: tuple[Accelerator, ...] | Unknown
    runtime: str | Unknown | None
    none_because: str | None


def read_accelerators() -> Accelerators:
    """Find out which accelerators there are."""
    found = ask(_devices)
    if isinstance(found, Unknown):
        return Accelerators(found, ask(_runtime), None)
    devices, none_because = found
    return Accelerators(devices, ask(_runtime), none_because)


def _runtime() -> str | None:
    import torch

    if torch.version.cuda is not None:
        return f"CUDA {torch.version.cuda}"
    if torch.version.hip is not None:
        return f"ROCm {torch.version.hip}"
    return "MPS" if torch.backends.mps.is_built() else None


def _devices() -> tuple[tuple[Accelerator, ...], str | None]:
    """The devices; or none, and why."""
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        if torch.backends.mps.is_built():
            return _mps()
        reason = f"torch {torch.__version__} is built for the CPU alone"
        if _NVIDIA_DRIVER.exists():
            reason += ", and this machine has an NVIDIA driver: install torch for CUDA"
        return (), reason
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if available:
        return tuple(_gpu(number) for number in range(torch.cuda.device_count())), None
    if said:  # torch tells of an old driver in a warning
        return (), " ".join(str(said[0].message).split())
    if _NVIDIA_DRIVER.exists():
        return (), "the NVIDIA driver shows torch no GPU"
    return (), "no GPU, or no driver for it"


def _gpu(number: int) -> Accelerator:
    import torch

    device = f"cuda:{number}"
    properties = ask(lambda: torch.cuda.get_device_properties(number))
    if isinstance(properties, Unknown):
        return Accelerator(device, properties, properties, properties, properties)
    version = f"{properties.major}.{properties.minor}"
    return Accelerator(
        device=device,
        name=str(properties.name),
        total_bytes=int(properties.total_memory),
        free_bytes=ask(lambda: int(torch.cuda.mem_get_info(number)[0])),
        compute_capability=version if torch.version.hip is None else str(properties.gcnArchName),
    )


def _mps() -> tuple[tuple[Accelerator, ...], str | None]:
    import torch

    if not torch.backends.mps.is_available():
        return (), "this macOS or this Mac has no Metal device for torch"
    total = ask(lambda: int(torch.mps.recommended_max_memory()))
    used = ask(lambda: int(torch.mps.driver_allocated_memory()))
    if isinstance(total, Unknown):
        free: int | Unknown = total
    else:
        free = used if isinstance(used, Unknown) else max(0, total - used)
    return (Accelerator("mps", "Apple GPU", total, free, None),), None
