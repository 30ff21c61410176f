"""Give a model an attention mask of our own making, in the form that its attention reads.

Packed rows hold several documents, each of which may see itself only. transformers takes
a ready boolean mask, but then adds nothing to it: a model with sliding windows needs a
mask for each kind of layer, or its local layers would see too far.

What a mask looks like depends on the implementation of attention (`model.attention` in a recipe):
``sdpa`` and ince's own take booleans; ``eager`` adds a mask to the scores; flex attention has
blocks of its own; FlashAttention has no mask, and is told where documents begin.
"""

from typing import Any

import torch
from torch import Tensor

from ince.errors import ModelReferenceError

__all__ = ["attention_inputs"]

_FULL, _SLIDING = "full_attention", "sliding_attention"


def attention_inputs(
    model: torch.nn.Module, allowed_B1LL: Tensor, position_ids_BL: Tensor
) -> dict[str, Any]:
    """The arguments with which `model` attends where `allowed` is True, and its positions.

    Args:
        model: a causal language model of transformers, wrapped or not.
        allowed_B1LL: (batch, 1, query, key) bool; causal already.
        position_ids_BL: (batch, place) int64. Windows reach back by position, not by place:
            what stands between two tokens of a packed row may be of another document.

    Raises:
        ModelReferenceError: the model has layers that no such mask describes, or its
            implementation of attention cannot keep these documents apart.
    """
    config: Any = getattr(model, "config", None)
    if config is not None and hasattr(config, "get_text_config"):
        config = config.get_text_config()
    implementation = str(getattr(config, "_attn_implementation", None))
    inputs: dict[str, Any] = {"position_ids": position_ids_BL}
    masks = _masks(config, allowed_B1LL, position_ids_BL)
    if "flash" in implementation:
        return {**inputs, "attention_mask": None, **_beginnings(position_ids_BL, implementation)}
    if implementation == "eager":
        dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
        masks = {kind: _added(mask, dtype) for kind, mask in masks.items()}
    elif implementation == "flex_attention":
        masks = {kind: _blocks(mask) for kind, mask in masks.items()}
    # A model with layers of one kind takes the mask itself.
    mask = masks if len(masks) > 1 else next(iter(masks.values()))
    return {**inputs, "attention_mask": mask}


def _masks(config: Any, allowed_B1LL: Tensor, position_ids_BL: Tensor) -> dict[str, Any]:
    """A mask of booleans for each kind of layer; only one where all layers are alike."""
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
        return {_FULL: allowed_B1LL}
    near_BLL = position_ids_BL[:, :, None] - position_ids_BL[:, None, :] < int(window)
    sliding = allowed_B1LL & near_BLL[:, None]
    if not kinds:  # such as Mistral: every layer has the window
        return {_SLIDING: sliding}
    return {_FULL: allowed_B1LL, _SLIDING: sliding}


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the scores: nothing, or the least number there is."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)


def _blocks(mask_B1LL: Tensor) -> Any:
    """A `BlockMask` of torch's flex attention, whose kernels pass over what nobody sees."""
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return mask_B1LL[row, 0, query, key]

    rows, _, length, _ = mask_B1LL.shape
    return create_block_mask(sees, rows, None, length, length, device=str(mask_B1LL.device))


def _beginnings(position_ids_BL: Tensor, implementation: str) -> dict[str, Any]:
    """Where documents begin in the rows laid end to end, as FlashAttention is told.

    Padding has position 0, so that each of its tokens is a document of its own.
    """
    follows = position_ids_BL[:, 1:] == position_ids_BL[:, :-1] + 1
    starts = position_ids_BL == 0
    if not bool((follows | starts[:, 1:]).all() & starts[:, 0].all()):
        raise ModelReferenceError(
            "FlashAttention cannot let examples share a beginning",
            got=f"model.attention: {implementation}",
            do="set data.share_beginnings: false, or another model.attention",
        )
    begin = starts.flatten().nonzero()[:, 0].to(torch.int32)
    ends = torch.cat([begin, begin.new_tensor([position_ids_BL.numel()])])
    longest = int(ends.diff().max())
    return {
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
    }
