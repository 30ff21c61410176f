"""All facts of the machine in one object, and that object as JSON."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

from ince.environment.accelerators import Accelerators, read_accelerators
from ince.environment.memory import Cache, Memory, read_cache, read_memory
from ince.environment.processor import Processor, read_processor
from ince.environment.unknown import Unknown, ask
from ince.record import versions

__all__ = ["Backend", "Environment", "Threads", "read_environment"]

# Not needed to run; what they are explains what works and what does not.
_OTHER_PACKAGES = ("triton", "accelerate", "gguf", "bitsandbytes", "peft")


@dataclass(frozen=True)
class Backend:
    """Which kernels run on a kind of device.

    Attributes:
        device: ``cpu``, ``cuda``, ….
        backend: ``cpu``, ``triton``, or ``reference`` for plain torch.
        detail: the path taken, such as its instruction set.
        fallback_reason: why it is not the fastest that ince has for the device; None when it is.
    """

    device: str
    backend: str
    detail: str
    fallback_reason: str | None


@dataclass(frozen=True)
class Threads:
    """Threads of torch: inside one operation, and for operations side by side."""

    inside_operations: int | Unknown
    between_operations: int | Unknown


@dataclass(frozen=True)
class Environment:
    """What this machine offers; each fact may be `Unknown`."""

    platform: str
    processor: Processor
    memory: Memory
    accelerators: Accelerators
    backends: tuple[Backend, ...] | Unknown
    threads: Threads
    cache: Cache
    versions: Mapping[str, str] | Unknown

    def to_dict(self) -> dict[str, object]:
        """JSON-ready; what is not known is null, its reason in ``unknown`` by dotted path."""
        unknown: dict[str, str] = {}
        content = _plain(self, "", unknown)
        assert isinstance(content, dict)
        return {**content, "unknown": unknown}


def read_environment() -> Environment:
    """Find out everything; nothing is raised for a fact that cannot be had."""
    return Environment(
        platform=f"{platform.system()} {platform.machine()}",
        processor=read_processor(),
        memory=read_memory(),
        accelerators=read_accelerators(),
        backends=ask(_backends),
        threads=_threads(),
        cache=read_cache(),
        versions=ask(lambda: versions(*_OTHER_PACKAGES)),
    )


def _backends() -> tuple[Backend, ...]:
    from ince.ops.backends import report

    return tuple(
        Backend(each.device_type, each.backend, each.detail, each.fallback_reason)
        for each in report()
    )


def _threads() -> Threads:
    def inside() -> int:
        import torch

        return torch.get_num_threads()

    def between() -> int:
        import torch

        return torch.get_num_interop_threads()

    return Threads(ask(inside), ask(between))


def _plain(value: object, path: str, unknown: dict[str, str]) -> object:
    if isinstance(value, Unknown):
        unknown[path] = value.reason
        return None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item, f"{path}.{n}", unknown) for n, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {str(name): item for name, item in value.items()}
    if is_dataclass(value):
        return {
            field.name: _plain(
                getattr(value, field.name), f"{path}.{field.name}".lstrip("."), unknown
            )
            for field in fields(value)
        }
    return value
