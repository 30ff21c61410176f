"""What transformers leaves out when it makes a config of a GGUF file's metadata.

transformers copies a few keys for each architecture, and says nothing of the others: a file
whose heads have a size of their own, whose experts are wider than usual or whose positions
are stretched becomes another model, or one that the weights do not fit. Here these are read
from the file too, for the architectures of `ince.models.gguf_plan`.

Source: the keys of GGUF (github.com/ggml-org/ggml, docs/gguf.md); the types of rotary
embeddings of transformers (modeling_rope_utils).
"""

from typing import Any

import numpy as np
import torch

from ince.errors import CorruptFileError, ModelReferenceError
from ince.formats.gguf import GGUFFile
from ince.models.gguf_plan import ARCHITECTURES

__all__ = ["complete_config"]

_SIZES = {
    "context_length": "n_positions",
    "attention.key_length": "head_dim",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}
# Where only a part of each head is rotated.
_PARTIAL = {"nemotron", "phi3", "stablelm"}
_MAX_FREQUENCIES = 4096


def complete_config(file: GGUFFile, config: Any) -> None:
    """Set in `config` what the file says and transformers did not read.

    Raises:
        ModelReferenceError: positions are stretched in a way that is not known.
        CorruptFileError: a value is not of its kind.
    """
    architecture = str(file.metadata.get("general.architecture"))
    if architecture not in ARCHITECTURES:
        return
    for key, attribute in _SIZES.items():
        value = file.metadata.get(f"{architecture}.{key}")
        if isinstance(value, int) and hasattr(config, attribute):
            setattr(config, attribute, value)
    if "blk.0.attn_q.bias" in file.entries and hasattr(config, "attention_bias"):
        config.attention_bias = True
    if "blk.0.ffn_gate.bias" in file.entries and hasattr(config, "mlp_bias"):
        config.mlp_bias = True
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict):
        return
    # Where layers differ, only those that see everything are stretched.
    rope = rope.get("full_attention", rope)
    if architecture in _PARTIAL:
        rotated = _number(file, f"{architecture}.rope.dimension_count")
        heads = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        if rotated is not None:
            rope["partial_rotary_factor"] = rotated / heads
    scaling = _scaling(file, architecture, config.max_position_embeddings)
    if scaling:
        rope.update(scaling)


def _scaling(file: GGUFFile, architecture: str, max_positions: int) -> dict[str, Any]:
    """How positions are stretched, in transformers' words; empty when they are not."""
    prefix = f"{architecture}.rope.scaling"
    trained = _number(file, f"{prefix}.original_context_length")
    if "rope_freqs.weight" in file.entries:
        # A divisor for every frequency: Llama 3. transformers has a rule to compute them,
        # and one type that takes them as they are.
        divisors = _table(file, "rope_freqs.weight")
        if all(divisor == 1 for divisor in divisors):
            return {}
        return {
            "rope_type": "longrope",
            "short_factor": divisors,
            "long_factor": divisors,
            "factor": 1.0,
            "attention_factor": 1.0,
            "original_max_position_embeddings": max_positions,
        }
    if "rope_factors_short.weight" in file.entries and "rope_factors_long.weight" in file.entries:
        before = int(trained or max_positions)
        found: dict[str, Any] = {
            "rope_type": "longrope",
            "short_factor": _table(file, "rope_factors_short.weight"),
            "long_factor": _table(file, "rope_factors_long.weight"),
            "factor": max_positions / before,
            "original_max_position_embeddings": before,
        }
        attention = _number(file, f"{prefix}.attn_factor")
        return found if attention is None else found | {"attention_factor": attention}
    kind = file.metadata.get(f"{prefix}.type", "none")
    factor = _number(file, f"{prefix}.factor")
    if kind == "none" or factor is None:
        return {}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        before = int(trained or max_positions / factor)
        return {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": before,
        }
    raise ModelReferenceError(
        "the model's positions are stretched in a way that is not known",
        where=file.path,
        got=kind,
        expected="none, linear, yarn, or factors among the tensors",
        do="use the safetensors form of the model",
    )


def _table(file: GGUFFile, name: str) -> list[float]:
    """A divisor for every frequency of a head."""
    shape = file.entries[name].shape
    if len(shape) != 1 or shape[0] > _MAX_FREQUENCIES:
        raise CorruptFileError(
            f"tensor {name!r} is not a list of factors",
            where=file.path,
            got=list(shape),
            do="the file is damaged; get it again",
        )
    return file.tensor(name, torch.float32).tolist()


def _number(file: GGUFFile, key: str) -> float | None:
    value = file.metadata.get(key)
    if value is None:
        return None
    if not isinstance(value, int | float) or not np.isfinite(value) or value <= 0:
        raise CorruptFileError(
            f"the file's description is not that of a model: {key}",
            where=file.path,
            got=value,
            expected="a number above 0",
            do="the file is damaged; get it again",
        )
    return value
