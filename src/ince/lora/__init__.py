"""LoRA: config, layer, injection, the adapted model and its merged form."""

from ince.lora.config import LoraConfig
from ince.lora.inject import adapter_tensors, inject, load_adapter_tensors
from ince.lora.layer import LoraLinear
from ince.lora.merge import MergedTensor, merged_state_dict, merged_tensors
from ince.lora.model import PeftModel, get_peft_model

__all__ = [
    "LoraConfig",
    "LoraLinear",
    "MergedTensor",
    "PeftModel",
    "adapter_tensors",
    "get_peft_model",
    "inject",
    "load_adapter_tensors",
    "merged_state_dict",
    "merged_tensors",
]
