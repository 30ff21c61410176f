"""Which geometry a base layer has: the table of the layers that LoRA can adapt.

An update stands beside a weight only where the layer does nothing else with it. So a subclass
counts when its forward is the plain one, or one that is known here; any other is refused, and
`why_not` says why.
"""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.utils import parametrize

from ince.lora.layers.convolution import ConvolutionGeometry
from ince.lora.layers.embedding import EmbeddingGeometry, scale_of
from ince.lora.layers.geometry import Geometry
from ince.lora.layers.linear import LinearGeometry
from ince.quant import Linear4bit

__all__ = ["geometry_of", "is_linear", "is_transposed", "why_not"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Subclasses of nn.Linear that compute what it does, in words of their own.
_SAME_AS_LINEAR = frozenset({("transformers.models.falcon.modeling_falcon", "FalconLinear")})


def geometry_of(base: nn.Module) -> Geometry | None:
    """How `base` multiplies, or None for a layer that LoRA does not adapt."""
    for is_kind, make in _KINDS:
        if is_kind(base):
            return make(base)
    return None


def is_linear(base: nn.Module) -> bool:
    """Whether it multiplies its input by a matrix: what "all-linear" means."""
    return _is_linear(base) or is_transposed(base)


def is_transposed(base: nn.Module) -> bool:
    """Whether it is transformers' `Conv1D`."""
    # By name, since importing transformers takes seconds; its class has no base of its own.
    kind = type(base)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def why_not(base: nn.Module) -> str:
    """Why `geometry_of` knows no geometry, to follow the layer's name in a sentence."""
    kind = type(base).__name__
    if type(base).__module__.startswith("bitsandbytes."):
        return (
            f"is a {kind} of bitsandbytes; load the base with ince.load_model(..., "
            "quantization=ince.NF4Config()), whose codes are the same"
        )
    if isinstance(base, nn.Linear | nn.Embedding | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        if not _has_weight_of_its_own(base):
            return f"is a {kind} whose weight is computed anew for each forward"
        if isinstance(base, nn.Embedding) and base.max_norm is not None:
            return f"is a {kind} that changes its weight in each forward (max_norm)"
        return f"is a {kind}, which uses its weight in a way of its own"
    return f"is a {kind}, which LoRA does not adapt"


def _is_linear(base: nn.Module) -> bool:
    if isinstance(base, Linear4bit):
        return True
    kind = type(base)
    return (
        isinstance(base, nn.Linear)
        and (_forward_is(base, nn.Linear) or (kind.__module__, kind.__name__) in _SAME_AS_LINEAR)
        # Attention reads its weight and never calls it.
        and not isinstance(base, nn.modules.linear.NonDynamicallyQuantizableLinear)
        and _has_weight_of_its_own(base)
    )


def _is_embedding(base: nn.Module) -> bool:
    if not isinstance(base, nn.Embedding) or base.max_norm is not None:
        return False
    scale = scale_of(base)
    if isinstance(scale, Tensor):
        is_known = scale.numel() == 1
    elif scale is not None:
        is_known = isinstance(scale, int | float)
    else:
        is_known = _forward_is(base, nn.Embedding)
    return is_known and _has_weight_of_its_own(base)


def _is_convolution(base: nn.Module) -> bool:
    return type(base) in _CONVOLUTIONS and _has_weight_of_its_own(base)


def _forward_is(base: nn.Module, kind: type[nn.Module]) -> bool:
    return type(base).forward is kind.forward


def _has_weight_of_its_own(base: nn.Module) -> bool:
    # What is reparametrized (weight_norm, …) keeps other parameters, and computes the weight.
    return isinstance(vars(base)["_parameters"].get("weight"), nn.Parameter) and not (
        parametrize.is_parametrized(base)
    )


def _transposed(base: nn.Module) -> Geometry:
    return LinearGeometry(base, is_transposed=True)


_KINDS: tuple[tuple[Callable[[nn.Module], bool], Callable[..., Geometry]], ...] = (
    (_is_linear, LinearGeometry),
    (is_transposed, _transposed),
    (_is_embedding, EmbeddingGeometry),
    (_is_convolution, ConvolutionGeometry),
)
