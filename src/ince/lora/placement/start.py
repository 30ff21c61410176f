"""The first values of a fresh adapter."""

import torch

from ince.lora.config import LoraConfig
from ince.lora.layers.embedding import EmbeddingGeometry
from ince.lora.layers.layer import LoraLayer
from ince.lora.starts import drawn
from ince.lora.starts.start import Start
from ince.lora.variants import VARIANTS

__all__ = ["start_adapter"]


@torch.no_grad()
def start_adapter(layer: LoraLayer, adapter_name: str, config: LoraConfig) -> None:
    """Set A and B and B's bias, and then what the variant derives from them.

    True: A uniform in ±1/√fan-in (Kaiming, a=√5, as loralib), B zero; of an embedding A zero
    and B normal. "gaussian": A of deviation 1/r, B zero. False: all of them random.
    """
    a, b = layer.factor_parameters(adapter_name)
    spec = layer.specs[adapter_name]
    start = _drawn(layer, tuple(a.shape), tuple(b.shape), config, spec.r, bias=spec.bias)
    a.copy_(start.a_RD)
    b.copy_(start.b_OR)
    if spec.bias:
        bias = layer.parameter(adapter_name, "lora_B.bias")
        bias.zero_() if start.bias_O is None else bias.copy_(start.bias_O)
    VARIANTS[spec.variant].finish(layer, adapter_name)


def _drawn(
    layer: LoraLayer,
    shape_a: tuple[int, ...],
    shape_b: tuple[int, ...],
    config: LoraConfig,
    r: int,
    *,
    bias: bool,
) -> Start:
    kind = config.init_lora_weights
    if isinstance(layer.geometry, EmbeddingGeometry):
        (rows_a, columns_a), (rows_b, columns_b) = shape_a, shape_b
        sizes = (rows_a, columns_a), (rows_b, columns_b)
        return drawn.embedding(*sizes, identity=kind is not False)
    if kind is False:
        return drawn.uniform(shape_a, shape_b, bias=bias)
    if kind == "gaussian":
        return drawn.gaussian(shape_a, shape_b, r=r, bias=bias)
    return drawn.kaiming(shape_a, shape_b, bias=bias)
