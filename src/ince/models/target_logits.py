"""Logits at chosen places only, whatever the model's class.

The logits are the largest activation there is: one row of 1,024 tokens over a vocabulary of
150,000 takes 600 MB in float32. A hook in front of the output layer passes on the chosen
places alone; it is gone when the block is left, by an exception, too. The model's code and
its arguments stay as they are, so that soft-capping and scaling of logits are kept.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ince.errors import ModelReferenceError

__all__ = ["logits_only_at"]


@contextlib.contextmanager
def logits_only_at(model: Any, rows_N: torch.Tensor, places_N: torch.Tensor) -> Iterator[None]:
    """Inside, the model returns logits of shape (1, N, vocabulary) instead of (B, L, vocabulary).

    Args:
        model: a causal language model of transformers, wrapped or not.
        rows_N, places_N: (N,) int64, row and place of each position that is wanted.

    Raises:
        ModelReferenceError: the model has no output layer.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise ModelReferenceError(
            "the model has no output layer that its class names",
            got=type(model).__name__,
            expected="a causal language model",
        )

    def select(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (arguments[0][rows_N, places_N][None], *arguments[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
