"""Attention of transformers' models over the engine's blocks, by their attention interface.

A step's tokens of all sequences stand one to a row, (N, 1), so that every other layer takes them as
they are. Here the rows' keys and values are written into the layer's pool, and each query sees its
own sequence's. No mask is made: transformers makes none for an implementation that registers none.

What a layer asks for and this does not compute (sinks, position biases, attention to both sides,
keys and values of unequal width, caches shared between layers) is refused by name when the engine
starts, by a `survey` of one token.

Shapes: N tokens, H heads, K key heads, D width of a head.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ince.errors import InceError, ModelReferenceError
from ince.models import attention_set_to
from ince.ops import paged_attention, write_kv_

__all__ = ["LayerShape", "StepTables", "in_step", "paged", "paged_attention_forward", "survey"]

_NAME = "ince_paged"

# Options that change the result and are not computed here.
_NOT_COMPUTED = ("s_aux", "position_bias", "cache", "head_mask")


@dataclass(frozen=True)
class StepTables:
    """Where a step's tokens are: see `ince.ops.paged_attention` and `write_kv_`.

    Attributes:
        pools: keys and values of each layer, by the layer's index.
    """

    pools: dict[int, tuple[Tensor, Tensor]]
    slots: Tensor
    block_table: Tensor
    query_starts: Tensor
    context_lengths: Tensor


@dataclass(frozen=True)
class LayerShape:
    """What one layer keeps of a token: keys and values of `num_heads` heads of `width`."""

    num_heads: int
    width: int


_Survey = dict[int, LayerShape]

_step: ContextVar[StepTables | _Survey | None] = ContextVar("ince_paged_step", default=None)


def paged_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of a step's tokens, in transformers' attention interface.

    Args:
        module: the attention layer; its ``layer_idx`` says which pool is its own.
        query: (N, H, 1, D). key, value: (N, K, 1, D).
        attention_mask: None.
        scaling: of the scores; 1/√D when None.
        dropout: 0.
        sliding_window: a query sees so many keys, its own among them.
        softcap: of the scores.
        options: of other implementations.

    Returns:
        (N, 1, H, D), and None in place of the probabilities.

    Raises:
        InceError: there is no step.
    """
    step = _step.get()
    if step is None:
        raise InceError(
            "a model that serves was called from outside of its engine",
            got=type(module).__name__,
            do="close the engine first",
        )
    layer: Any = getattr(module, "layer_idx", None)
    if isinstance(step, dict):
        _check(module, layer, step, query, key, value, attention_mask, dropout, options)
        step[layer] = LayerShape(key.shape[1], key.shape[3])
        # One token sees itself alone.
        seen = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
        return seen.transpose(1, 2), None
    k_pool, v_pool = step.pools[layer]
    write_kv_(k_pool, v_pool, key.squeeze(2), value.squeeze(2), step.slots)
    out = paged_attention(
        query.squeeze(2),
        k_pool,
        v_pool,
        step.block_table,
        step.query_starts,
        step.context_lengths,
        query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        sliding_window or 0,
        softcap or 0.0,
    )
    return out.unsqueeze(1), None


def _check(
    module: nn.Module,
    layer: Any,
    known: _Survey,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    options: dict[str, Any],
) -> None:
    wrong: str | None = None
    if not isinstance(layer, int) or layer in known:
        wrong = f"layer number {layer!r}, which is not its own"
    elif key.shape != value.shape or query.shape[-1] != key.shape[-1]:
        wrong = "queries, keys and values of unequal width"
    elif mask is not None:
        wrong = "a mask of its own"
    elif dropout:
        wrong = "dropout"
    elif getattr(module, "is_causal", True) is False or options.get("is_causal") is False:
        wrong = "attention to both sides"
    else:
        found = [name for name in _NOT_COMPUTED if options.get(name) is not None]
        wrong = ", ".join(found) or None
    if wrong is not None:
        raise ModelReferenceError(
            "the engine does not compute this model's attention",
            where=type(module).__name__,
            got=wrong,
            expected="causal self-attention, full or in a window",
        )


@contextlib.contextmanager
def paged(model: nn.Module) -> Iterator[None]:
    """Inside, `model` computes attention with `paged_attention_forward`, in a step only."""
    from transformers import AttentionInterface

    AttentionInterface.register(_NAME, paged_attention_forward)
    with attention_set_to(model, _NAME):
        yield


@contextlib.contextmanager
def in_step(tables: StepTables) -> Iterator[None]:
    """Inside, in this thread, attention is that of a step."""
    token = _step.set(tables)
    try:
        yield
    finally:
        _step.reset(token)


@contextlib.contextmanager
def survey() -> Iterator[dict[int, LayerShape]]:
    """Inside, a forward of one token leaves the shape of each layer in the dict given.

    Raises (in the forward):
        ModelReferenceError: a layer's attention is none that the engine computes.
    """
    found: _Survey = {}
    token = _step.set(found)
    try:
        yield found
    finally:
        _step.reset(token)
