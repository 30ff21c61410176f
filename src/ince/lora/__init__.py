"""LoRA: config, layers, injection, the adapted model and its merged form."""

from ince.lora.config import LoraConfig
from ince.lora.factors import Factors
from ince.lora.layers.adapted import Adapted, MergedTensor
from ince.lora.layers.layer import LoraLayer
from ince.lora.merge import merged_state_dict, merged_tensors
from ince.lora.model import PeftModel, get_peft_model
from ince.lora.placement.inject import adapter_tensors, inject, load_adapter_tensors

__all__ = [
    "Adapted",
    "Factors",
    "LoraConfig",
    "LoraLayer",
    "MergedTensor",
    "PeftModel",
    "adapter_tensors",
    "get_peft_model",
    "inject",
    "load_adapter_tensors",
    "merged_state_dict",
    "merged_tensors",
]
