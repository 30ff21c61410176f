"""Attention for training on packed rows on a CPU, registered with transformers.

A packed row holds several documents, so that most of the mask is False, and torch's fused CPU
attention computes all of it; its backward pass with a mask takes three times as long as plain
products do. `ince.ops.packed_attention` computes what the mask allows. It is registered as an
attention implementation and chosen for the time of a training run; the model's code is not
touched. Whatever it was not made for (dropout, other masks, inference) goes to transformers'
own implementation. Where the compiled operator does not run (float64, or no compiler when ince
was installed), short rows are computed with plain products.

Shapes: B rows, H heads, K key heads, L places, D width of a head.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ince.models.attention_choice import attention_set_to
from ince.ops import attention_tiles, cpu, packed_attention

__all__ = ["packed_attention_forward", "packed_row_attention"]

_NAME = "ince_packed_rows"
_ELSE = "sdpa"

# What adds to the scores, or changes them.
_NOT_COMPUTED = ("softcap", "s_aux", "position_bias", "cache")

# Plain scores take L² of memory for each head, and are kept for the backward pass.
_MAX_PLAIN_LENGTH = 512

# Tiles of the masks of one forward pass, made at its first layer: by mask, with the version
# that they are of.
_TILES = WeakTensorKeyDictionary()


def packed_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """softmax(q kᵀ · scaling) v where the mask allows, in transformers' attention interface.

    Args:
        module: the attention layer.
        query: (B, H, L, D). key, value: (B, K, L, D).
        attention_mask: (B, 1, L, L) bool, True where the query may see the key.
        scaling: of the scores; 1/√D when None.
        dropout: of the probabilities; only 0 is computed here.
        options: of other implementations.

    Returns:
        (B, L, H, D), and None in place of the probabilities.
    """
    rows, _, length, width = query.shape
    scale = width**-0.5 if scaling is None else scaling
    if (
        torch.is_grad_enabled()
        and attention_mask is not None
        and attention_mask.dtype == torch.bool
        and tuple(attention_mask.shape) in ((rows, 1, length, length), (1, 1, length, length))
        and key.shape == value.shape
        and dropout == 0
        and all(options.get(name) is None for name in _NOT_COMPUTED)
    ):
        if cpu.attention.is_compiled_for(query):
            tiles = _tiles_of(attention_mask)
            mask = attention_mask.expand(rows, -1, -1, -1)
            tiles = tiles.expand(rows, -1, -1)
            out, _ = packed_attention(query, key, value, mask, scale, tiles=tiles)
            return out.transpose(1, 2), None
        if length <= _MAX_PLAIN_LENGTH:
            return _plain(query, key, value, attention_mask, scale), None
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout, scaling, **options
    )


def _tiles_of(mask: Tensor) -> Tensor:
    if torch.compiler.is_compiling() or mask.is_inference():
        return attention_tiles(mask)
    version = mask._version
    found = _TILES.get(mask)
    if found is None or found[0] != version:
        found = _TILES[mask] = version, attention_tiles(mask)
    return found[1]


def _plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Three matrix products and a softmax, of all scores."""
    rows, heads, length, width = query.shape
    key_heads = key.shape[1]
    # Heads of a group stand below each other, so that keys and values are not repeated.
    grouped = (query * scale).reshape(rows, key_heads, -1, width)
    scores = torch.matmul(grouped, key.transpose(-1, -2)).view(rows, heads, length, length)
    bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, float("-inf"))
    probabilities = (scores + bias).softmax(dim=-1)
    grouped = torch.matmul(probabilities.view(rows, key_heads, -1, length), value)
    return grouped.view(rows, heads, length, width).transpose(1, 2).contiguous()


@contextlib.contextmanager
def packed_row_attention(model: Any) -> Iterator[bool]:
    """Inside, `model` computes attention with `packed_attention_forward`.

    Yields whether it does: on a CPU, for a model that uses transformers' ``sdpa``.
    """
    config: Any = getattr(model, "config", None)
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    if config is None or not on_cpu or getattr(config, "_attn_implementation", None) != _ELSE:
        yield False
        return
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(_NAME, packed_attention_forward)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    with attention_set_to(model, _NAME, instead_of=_ELSE):
        yield True
