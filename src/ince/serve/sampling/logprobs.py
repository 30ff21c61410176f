"""Log probabilities of tokens that were chosen or given, as the model has them.

They are of the logits before temperature, penalties, biases and grammars: what a model thinks of a
text does not depend on how somebody draws from it.

Shapes: N positions, V vocabulary, K alternatives.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["TokenLogprob", "token_logprobs"]

# Positions at once: of a large vocabulary each is a megabyte in float32.
_MAX_POSITIONS = 64


class TokenLogprob(NamedTuple):
    """One token, and what the model thought of it.

    Attributes:
        token: id.
        logprob: natural logarithm of its probability.
        top: the likeliest tokens there and theirs, most likely first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@torch.no_grad()
def token_logprobs(
    logits_NV: Tensor, tokens: Sequence[int], num_top: int = 0
) -> list[TokenLogprob]:
    """What the model thinks of each of `tokens`.

    Args:
        logits_NV: at the positions before them.
        tokens: N ids.
        num_top: K, how many of the likeliest come with each.
    """
    found: list[TokenLogprob] = []
    num_top = min(num_top, logits_NV.shape[-1])
    for start in range(0, len(tokens), _MAX_POSITIONS):
        part_NV = logits_NV[start : start + _MAX_POSITIONS].float()
        given = list(tokens[start : start + _MAX_POSITIONS])
        wanted_N1 = torch.tensor(given, device=part_NV.device)[:, None]
        norm_N1 = part_NV.logsumexp(dim=-1, keepdim=True)
        own = (part_NV.gather(-1, wanted_N1) - norm_N1)[:, 0].tolist()
        if num_top == 0:
            found += [TokenLogprob(token, value) for token, value in zip(given, own, strict=True)]
            continue
        values_NK, ids_NK = part_NV.topk(num_top, dim=-1)
        values, ids = (values_NK - norm_N1).tolist(), ids_NK.tolist()
        for token, value, others, theirs in zip(given, own, ids, values, strict=True):
            found.append(TokenLogprob(token, value, tuple(zip(others, theirs, strict=True))))
    return found
