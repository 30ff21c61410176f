"""How much a model's engine can hold: its context, and how many blocks its memory has room for."""

from typing import Any

import torch

from ince.environment.memory import read_memory
from ince.errors import InputError, ModelReferenceError
from ince.serve.engine.blocks import BLOCK_SIZE
from ince.units import format_bytes

__all__ = ["choose_num_blocks", "context_length"]

# Of the memory that is free once the model is loaded.
_SHARE_OF_MEMORY = 0.25
_SHARE_OF_DEVICE = 0.75

# Their rotations depend on the longest sequence of a batch, beyond the length they were made for.
_MOVING_ROPES = ("dynamic", "longrope")


def context_length(model: Any) -> int:
    """Tokens that a sequence may have, prompt and answer together.

    Raises:
        ModelReferenceError: the model does not say.
    """
    config = model.config.get_text_config()
    length = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", 0)
    if not isinstance(length, int) or length < 1:
        raise ModelReferenceError(
            "the model does not say how long a sequence may be",
            where=type(model).__name__,
            got=length,
            expected="max_position_embeddings in its config",
        )
    for rope in _ropes(config):
        if rope.get("rope_type", rope.get("type")) in _MOVING_ROPES:
            original = rope.get("original_max_position_embeddings")
            original = original or getattr(config, "original_max_position_embeddings", None)
            length = min(length, original) if isinstance(original, int) else length
    return length


def choose_num_blocks(
    device: torch.device,
    bytes_of_block: int,
    *,
    kv_bytes: int | None,
    max_running: int,
    context: int,
) -> int:
    """How many blocks the KV cache has.

    Args:
        device: of the model, which is loaded already.
        bytes_of_block: in all layers.
        kv_bytes: of the cache; None for a share of what is free, or less where `max_running`
            sequences of full length take less.
        max_running: sequences at once.
        context: tokens of a sequence.

    Raises:
        InputError: not even a block fits.
    """
    most = max_running * -(-context // BLOCK_SIZE)
    if kv_bytes is None:
        count = min(most, _free_bytes(device) // bytes_of_block)
    else:
        count = kv_bytes // bytes_of_block
    if count < 1:
        raise InputError(
            "the KV cache has no room for a single block",
            got=format_bytes(kv_bytes or 0),
            expected=f"{format_bytes(bytes_of_block)} at least",
        )
    return count


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * _SHARE_OF_DEVICE)
    free = read_memory().free_bytes
    return int(free * _SHARE_OF_MEMORY) if isinstance(free, int) else 1 << 30


def _ropes(config: Any) -> list[dict[str, Any]]:
    """The rotations of the model: one, or one for each kind of layer."""
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if not isinstance(found, dict):
        return []
    nested = [value for value in found.values() if isinstance(value, dict)]
    return nested or [found]
