"""Answers to many conversations at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ince.errors import InputError
from ince.infer.decode import check_room, decode
from ince.infer.mode import evaluating
from ince.infer.parts import Parts
from ince.infer.prompt import Turn, encode_prompt, stop_tokens
from ince.infer.sampling import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Generation", "generate"]


@dataclass(frozen=True)
class Generation:
    """One answer.

    Attributes:
        text: without special tokens.
        num_tokens: generated, the stop token included.
        stopped: it ended by itself; False when it was cut at the limit.
    """

    text: str
    num_tokens: int
    stopped: bool


def generate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    conversations: Sequence[Sequence[Turn]],
    *,
    max_new_tokens: int,
    batch_size: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    parts: Parts | None = None,
) -> list[Generation]:
    """Let the model answer each conversation, in the order given.

    Prompts of like length share a batch. What a row answers does not depend on the batch
    but for rounding: in float32 greedy answers are the same at every batch size.

    Args:
        model: a causal language model, with an adapter or without; left as it was.
        tokenizer: its own; with a chat template.
        conversations: messages with ``role`` and ``content``, the last one the user's.
        max_new_tokens: for each answer, the stop token included.
        batch_size: conversations decoded together; memory grows with it.
        temperature: 0 takes the likeliest token.
        top_p: draw from the likeliest tokens that reach this probability together.
        seed: with the place of a conversation in the list it fixes what is drawn.
        progress: told ``(answers done, answers in all)``.
        parts: how many conversations are decoded together where memory is short.

    Raises:
        InputError: an argument out of range, or a prompt longer than the model's context.
        OutOfMemoryError: one conversation at a time does not fit into memory.
        TemplateError: the chat template cannot render a conversation.
    """
    if max_new_tokens < 1 or batch_size < 1:
        raise InputError(
            "generation needs room for a token and for a row",
            got=f"max_new_tokens={max_new_tokens}, batch_size={batch_size}",
            expected="1 or more of both",
        )
    sampling = Sampling(temperature, top_p, seed)
    prompts = [encode_prompt(tokenizer, conversation) for conversation in conversations]
    rooms = [check_room(model, len(prompt), max_new_tokens) for prompt in prompts]
    stops = stop_tokens(model, tokenizer)
    pad_id = tokenizer.pad_token_id
    # Longest first: the largest batch comes when memory is freshest, and fails early if at all.
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    answers: list[list[int]] = []  # of as many of `order` as are done

    def answer(batch: Sequence[int]) -> list[list[int]]:
        given: list[list[int]] = [[] for _ in batch]
        num_done = len(answers)

        def ended(num_rows: int) -> None:
            nonlocal num_done
            num_done += num_rows
            if progress is not None:
                progress(num_done, len(prompts))

        for new in decode(
            model,
            [prompts[i] for i in batch],
            rows=batch,
            stops=stops,
            pad_id=pad_id if isinstance(pad_id, int) else 0,
            limits=[rooms[i] for i in batch],
            sampling=sampling,
            ended=ended,
        ):
            for b, token in new:
                given[b].append(token)
        return given

    parts = Parts(what="writing answers") if parts is None else parts
    with evaluating(model, expand=True):
        for start in range(0, len(order), batch_size):
            for given in parts.of(order[start : start + batch_size], answer):
                answers += given
    by_place = dict(zip(order, answers, strict=True))
    return [_finish(tokenizer, by_place[i], stops) for i in range(len(prompts))]


def _finish(
    tokenizer: "PreTrainedTokenizerBase", answer: list[int], stops: frozenset[int]
) -> Generation:
    stopped = bool(answer) and answer[-1] in stops
    text = tokenizer.decode(
        answer[:-1] if stopped else answer,
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
    return Generation(text=str(text), num_tokens=len(answer), stopped=stopped)
