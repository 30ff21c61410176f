"""Give a model an attention mask of our own making.

Packed rows hold several documents, each of which may see itself only. transformers takes
a ready boolean mask, but then adds nothing to it: a model with sliding windows needs a
mask for each kind of layer, or its local layers would see too far.
"""

from typing import Any

import torch

from ince.errors import ModelReferenceError

__all__ = ["attention_argument"]

_FULL, _SLIDING = "full_attention", "sliding_attention"


def attention_argument(
    model: torch.nn.Module, allowed_B1LL: torch.Tensor, position_ids_BL: torch.Tensor
) -> torch.Tensor | dict[str, torch.Tensor]:
    """What to pass as ``attention_mask`` so that `model` attends where `allowed` is True.

    Args:
        model: a causal language model of transformers, wrapped or not.
        allowed_B1LL: (batch, 1, query, key) bool; causal already.
        position_ids_BL: (batch, place) int64. Windows reach back by position, not by place:
            what stands between two tokens of a packed row may be of another document.

    Raises:
        ModelReferenceError: the model has layers that no such mask describes.
    """
    config: Any = getattr(model, "config", None)
    if config is not None and hasattr(config, "get_text_config"):
        config = config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {_FULL, _SLIDING}:
        raise ModelReferenceError(
            "packed documents cannot be kept apart in this model's layers",
            got=", ".join(sorted(kinds - {_FULL, _SLIDING})),
            expected="layers of full or sliding attention",
            do="turn packing off (data.packing: false)",
        )
    window = getattr(config, "sliding_window", None)
    if not window or (kinds and _SLIDING not in kinds):
        return allowed_B1LL
    near_BLL = position_ids_BL[:, :, None] - position_ids_BL[:, None, :] < int(window)
    sliding = allowed_B1LL & near_BLL[:, None]
    if not kinds:  # such as Mistral: every layer has the window
        return sliding
    return {_FULL: allowed_B1LL, _SLIDING: sliding}
