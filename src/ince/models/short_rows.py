"""Attention for training on short rows on a CPU: three matrix products and a softmax.

torch's fused CPU attention saves memory that short rows do not need, and its backward pass
with a mask takes three times as long as plain products do. This is the plain form,
registered with transformers as an attention implementation and chosen for the time of a
training run; the model's code is not touched. Whatever it was not made for (long rows,
dropout, other masks, inference) goes to transformers' own implementation.

Shapes: B rows, H heads, K key heads, G = H / K, L places, D width of a head.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["short_row_attention", "short_row_forward"]

_NAME = "ince_short_rows"
_ELSE = "sdpa"

# Scores take L² of memory for each head, and are kept for the backward pass.
_MAX_LENGTH = 512


def short_row_forward(
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
    rows, heads, length, width = query.shape
    fits = (
        torch.is_grad_enabled()
        and attention_mask is not None
        and attention_mask.dtype == torch.bool
        and attention_mask.shape[-2:] == (length, length)
        and length <= _MAX_LENGTH
        and dropout == 0
        and not any(options.get(name) is not None for name in ("softcap", "s_aux"))
    )
    if not fits or attention_mask is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **options
        )
    key_heads = key.shape[1]
    scale = width**-0.5 if scaling is None else scaling
    # Heads of a group stand below each other, so that keys and values are not repeated.
    grouped = (query * scale).reshape(rows, key_heads, -1, width)
    scores = torch.matmul(grouped, key.transpose(-1, -2)).view(rows, heads, length, length)
    bias = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill_(
        ~attention_mask, float("-inf")
    )
    probabilities = (scores + bias).softmax(dim=-1)
    grouped = torch.matmul(probabilities.view(rows, key_heads, -1, length), value)
    return grouped.view(rows, heads, length, width).transpose(1, 2).contiguous(), None


@contextlib.contextmanager
def short_row_attention(model: Any) -> Iterator[bool]:
    """Inside, `model` computes attention with `short_row_forward` where that is faster.

    Yields whether it does: on a CPU, for a model that uses transformers' ``sdpa``.
    """
    config: Any = getattr(model, "config", None)
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    if config is None or not on_cpu or getattr(config, "_attn_implementation", None) != _ELSE:
        yield False
        return
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(_NAME, short_row_forward)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    configs = {id(c): c for c in _configs(model)}.values()
    before = [(c, c._attn_implementation) for c in configs]
    try:
        for c in configs:
            c._attn_implementation = _NAME
        yield True
    finally:
        for c, implementation in before:
            c._attn_implementation = implementation


def _configs(model: nn.Module) -> Iterator[Any]:
    """Every config that some layer of the model reads its implementation from."""
    for module in model.modules():
        config: Any = vars(module).get("config")
        if getattr(config, "_attn_implementation", None) == _ELSE:
            yield config
