"""A model reference becomes a placed, quantized model.

References are packaged names, folders, GGUF files and hub ids. Model definitions,
tokenizers and chat templates are transformers'; what is ours is finding the files,
checking them, and never holding more than the finished model and one tensor in memory.
"""

from ince.models.attention import attention_inputs
from ince.models.attention_choice import AttentionChoice, attention_set_to, choose_attention
from ince.models.fused import FusedReport, fused
from ince.models.load import choose_device, load_model, load_tokenizer
from ince.models.packaged import PACKAGED_MODELS
from ince.models.packed_attention import packed_row_attention
from ince.models.quantized_folder import save_quantized
from ince.models.reference import ResolvedModel, resolve
from ince.models.target_hidden import OutputHead, hidden_only_at, output_head
from ince.models.target_logits import logits_only_at

__all__ = [
    "PACKAGED_MODELS",
    "AttentionChoice",
    "FusedReport",
    "OutputHead",
    "ResolvedModel",
    "attention_inputs",
    "attention_set_to",
    "choose_attention",
    "choose_device",
    "fused",
    "hidden_only_at",
    "load_model",
    "load_tokenizer",
    "logits_only_at",
    "output_head",
    "packed_row_attention",
    "resolve",
    "save_quantized",
]
