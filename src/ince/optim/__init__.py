"""Optimizers and the course of their learning rate."""

from ince.optim.build import OptimizerName, build_optimizer, is_paged, set_learning_rate
from ince.optim.eight_bit import AdamW8bit, Lion8bit
from ince.optim.lora_fa import LoraFAOptimizer, create_lorafa_optimizer
from ince.optim.lora_plus import create_loraplus_optimizer, lora_plus_groups, lora_plus_ratios
from ince.optim.lr_ratios import lr_ratios
from ince.optim.named_state import (
    StateTensor,
    load_optimizer_state,
    optimizer_state,
    state_tensors,
)
from ince.optim.paged import PagedOptimizer
from ince.optim.paged_adamw import PagedAdamW
from ince.optim.paged_eight_bit import PagedAdamW8bit, PagedLion8bit
from ince.optim.paged_lion import Lion, PagedLion
from ince.optim.pages import PagesConfig, PagesUsage
from ince.optim.schedule import learning_rate

__all__ = [
    "AdamW8bit",
    "Lion",
    "Lion8bit",
    "LoraFAOptimizer",
    "OptimizerName",
    "PagedAdamW",
    "PagedAdamW8bit",
    "PagedLion",
    "PagedLion8bit",
    "PagedOptimizer",
    "PagesConfig",
    "PagesUsage",
    "StateTensor",
    "build_optimizer",
    "create_lorafa_optimizer",
    "create_loraplus_optimizer",
    "is_paged",
    "learning_rate",
    "load_optimizer_state",
    "lora_plus_groups",
    "lora_plus_ratios",
    "lr_ratios",
    "optimizer_state",
    "set_learning_rate",
    "state_tensors",
]
