"""Which geometry a base layer has: the table of the layers that LoRA can adapt."""

from collections.abc import Callable

from torch import nn

from ince.lora.layers.geometry import Geometry
from ince.lora.layers.linear import LinearGeometry, TransposedGeometry
from ince.quant import Linear4bit

__all__ = ["geometry_of", "is_linear"]


def geometry_of(base: nn.Module) -> Geometry | None:
    """How `base` multiplies, or None for a layer that LoRA does not adapt."""
    for is_kind, make in _KINDS:
        if is_kind(base):
            return make(base)
    return None


def is_linear(base: nn.Module) -> bool:
    """Whether it multiplies its input by a matrix: what "all-linear" means."""
    return _is_linear(base) or _is_transposed(base)


def _is_linear(base: nn.Module) -> bool:
    # Not subclasses of nn.Linear: those that exist store or use their weight differently.
    return type(base) is nn.Linear or isinstance(base, Linear4bit)


def _is_transposed(base: nn.Module) -> bool:
    # By name, since importing transformers takes seconds; its class has no base of its own.
    kind = type(base)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


_KINDS: tuple[tuple[Callable[[nn.Module], bool], Callable[..., Geometry]], ...] = (
    (_is_linear, LinearGeometry),
    (_is_transposed, TransposedGeometry),
)
