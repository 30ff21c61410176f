"""The decoding loop: prompts of different lengths, one token a step, until all have stopped.

Rows are padded on the left, so that the last position of every row is its newest token.
What all prompts begin with is read once and stands before the padding.
Keys and values live in transformers' cache. When more than half of the rows have
stopped, they are taken out of the batch and of the cache: on a CPU a step costs nearly
in proportion to its rows.

Shapes: B rows still in the batch, L longest prompt.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ince.errors import InputError
from ince.infer.sampling import Sampling
from ince.models import logits_only_at

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["check_room", "decode"]

# Tokens that all prompts begin with, such as a system message; fewer save nothing.
_WORTH_SHARING = 8


def check_room(model: Any, num_prompt_tokens: int, max_new_tokens: int) -> int:
    """How many tokens can be added to a prompt before the model's context is full.

    Raises:
        InputError: the prompt alone fills the context.
    """
    config = model.config.get_text_config()
    context = getattr(config, "max_position_embeddings", None)
    if not context:
        return max_new_tokens
    if num_prompt_tokens >= context:
        raise InputError(
            "the prompt fills the model's whole context",
            got=f"{num_prompt_tokens} tokens",
            expected=f"fewer than {context}",
            do="shorten the prompt, or start a new conversation",
        )
    return min(max_new_tokens, context - num_prompt_tokens)


def _read_beginning(
    model: Any, prompts: Sequence[Sequence[int]], cache: Any, device: torch.device
) -> int:
    """Read what all prompts begin with once, into the cache of every row; returns its length."""
    # A window reaches back by place in the cache, and would take the padding between the
    # beginning and a row's own tokens for tokens.
    if any(getattr(layer, "is_sliding", True) for layer in cache.layers):
        return 0
    shortest = min(len(prompt) for prompt in prompts)
    num_shared = 0
    # Every row keeps a token of its own: the one that predicts the first new one.
    while num_shared < shortest - 1 and len({p[num_shared] for p in prompts}) == 1:
        num_shared += 1
    if len(prompts) == 1 or num_shared < _WORTH_SHARING:
        return 0
    tokens_1P = torch.tensor([list(prompts[0][:num_shared])], device=device)
    nowhere = torch.zeros(0, dtype=torch.int64, device=device)
    with logits_only_at(model, nowhere, nowhere):
        model(input_ids=tokens_1P, past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(len(prompts))
    return num_shared


@torch.no_grad()
def decode(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    *,
    rows: Sequence[int],
    stops: frozenset[int],
    pad_id: int,
    limits: Sequence[int],
    sampling: Sampling,
    ended: Callable[[int], None] | None = None,
) -> Iterator[list[tuple[int, int]]]:
    """Yield, step by step, the (index of the prompt, new token) of each row that goes on.

    A row's stop token is yielded too, as its last.

    Args:
        model: in evaluation mode.
        prompts: token ids, at least one each.
        rows: the number of each prompt in the whole job; with the seed it fixes what is drawn.
        stops: tokens that end a row.
        pad_id: fills shorter prompts; it is masked, so any token will do.
        limits: new tokens at most, for each prompt; at least one.
        sampling: how tokens are drawn.
        ended: told how many more rows have stopped or reached their limit, for progress.
    """
    from transformers import DynamicCache

    device = next(model.parameters()).device
    cache = DynamicCache(config=model.config)
    num_shared = _read_beginning(model, prompts, cache, device)
    rests = [list(prompt[num_shared:]) for prompt in prompts]
    longest = max(len(rest) for rest in rests)
    input_BL = torch.tensor([[pad_id] * (longest - len(rest)) + rest for rest in rests])
    mask_BL = torch.tensor(
        [[1] * num_shared + [0] * (longest - len(rest)) + [1] * len(rest) for rest in rests]
    )
    uniforms = torch.stack([sampling.uniforms(row, max(limits)) for row in rows])
    going = list(range(len(prompts)))  # index of the prompt that each row of the batch answers
    live = [True] * len(prompts)

    tokens, mask = input_BL.to(device), mask_BL.to(device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, num_shared:]
    for step in range(max(limits)):
        # Not by logits_to_keep: torch multiplies the strided slice that it makes by one copy of
        # the output layer for each row.
        newest_B = torch.full((len(going),), tokens.shape[1] - 1, device=device)
        with logits_only_at(model, torch.arange(len(going), device=device), newest_B):
            logits_BV = model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            ).logits[0]
        chosen_B = sampling.choose(logits_BV, uniforms[going, step])
        chosen = chosen_B.tolist()
        new = [(i, token) for i, token in zip(going, chosen, strict=True) if live[i]]
        for i, token in new:
            live[i] = token not in stops and step + 1 < limits[i]
        yield new
        stopped = sum(not live[i] for i, _ in new)
        if ended is not None and stopped:
            ended(stopped)
        kept = [b for b, i in enumerate(going) if live[i]]
        if not kept:
            return
        positions = positions[:, -1:] + 1
        if 2 * len(kept) < len(going):
            index = torch.tensor(kept, device=device)
            cache.batch_select_indices(index)
            mask, positions, chosen_B = mask[index], positions[index], chosen_B[index]
            going = [going[b] for b in kept]
        mask = torch.cat([mask, mask.new_ones(len(going), 1)], dim=-1)
        tokens = chosen_B[:, None]
