"""The decoding loop: prompts of different lengths, one token a step, until all have stopped.

Rows are padded on the left, so that the last position of every row is its newest token.
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

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["check_room", "decode"]


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
    longest = max(len(prompt) for prompt in prompts)
    input_BL = torch.tensor([[pad_id] * (longest - len(p)) + list(p) for p in prompts])
    mask_BL = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    uniforms = torch.stack([sampling.uniforms(row, max(limits)) for row in rows])
    going = list(range(len(prompts)))  # index of the prompt that each row of the batch answers
    live = [True] * len(prompts)

    tokens, mask = input_BL.to(device), mask_BL.to(device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    for step in range(max(limits)):
        logits_BV = model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
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
