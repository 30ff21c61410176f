"""The first values of a fresh adapter."""

import math

import torch
from torch import nn

from ince.lora.config import LoraConfig
from ince.lora.layers.layer import LoraLayer
from ince.lora.variants import VARIANTS

__all__ = ["start_adapter"]


@torch.no_grad()
def start_adapter(layer: LoraLayer, adapter_name: str, config: LoraConfig) -> None:
    """Set A and B of a linear layer, and then what the variant derives from them.

    True: A uniform in ±1/√in (Kaiming, a=√5, as loralib), B zero; "gaussian": A of deviation
    1/r, B zero; False: both uniform.
    """
    a_RD, b_OR = layer.factor_parameters(adapter_name)
    if config.init_lora_weights == "gaussian":
        nn.init.normal_(a_RD, std=1 / a_RD.shape[0])
    else:
        nn.init.kaiming_uniform_(a_RD, a=math.sqrt(5))
    if config.init_lora_weights is False:
        nn.init.kaiming_uniform_(b_OR, a=math.sqrt(5))
    else:
        nn.init.zeros_(b_OR)
    spec = layer.specs[adapter_name]
    VARIANTS[spec.variant].finish(layer, adapter_name)
