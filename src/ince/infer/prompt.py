"""Conversations to token ids that ask for an answer, and the tokens that end one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ince.errors import InputError, TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Turn", "encode_prompt", "stop_tokens"]

_CONTENT = "answer"  # any word that no template contains


class Turn(Protocol):
    """One message of a conversation."""

    @property
    def role(self) -> str:
        """``system``, ``user`` or ``assistant``."""
        ...

    @property
    def content(self) -> str:
        """What was said."""
        ...


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", conversation: Sequence[Turn]) -> list[int]:
    """The conversation in the model's own template, up to where its answer begins.

    Raises:
        InputError: the conversation is empty.
        TemplateError: the tokenizer has no chat template, or it refuses the conversation.
    """
    if not conversation:
        raise InputError("an empty conversation cannot be answered", do="give at least one message")
    messages = [{"role": turn.role, "content": turn.content} for turn in conversation]
    ids: Any = _render(tokenizer, messages, add_generation_prompt=True, tokenize=True)
    return [int(token) for token in ids]


def _render(
    tokenizer: "PreTrainedTokenizerBase",
    messages: list[dict[str, str]],
    *,
    add_generation_prompt: bool,
    tokenize: bool,
) -> Any:
    if not tokenizer.chat_template:
        raise TemplateError(
            "the model has no chat template, so it cannot be talked to",
            where=tokenizer.name_or_path,
            do="use an instruction-tuned model, or put a chat_template.jinja beside its tokenizer",
        )
    try:
        return tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=add_generation_prompt,
            tokenize=tokenize,
            return_dict=False,
        )
    except Exception as error:  # templates are programs, and raise what they like
        raise TemplateError(
            "the model's chat template cannot render this conversation",
            where=tokenizer.name_or_path,
            got=f"{error}; roles: " + ", ".join(message["role"] for message in messages),
            do="some templates refuse a system message, or turns that do not alternate",
        ) from error


def stop_tokens(model: Any, tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """Every token that ends an answer.

    The tokenizer's end token, those of the generation settings, and the token that the
    chat template puts after an answer: for several models the last is neither of the others.
    """
    found: set[int] = set()
    settings = getattr(model, "generation_config", None)
    for end in (tokenizer.eos_token_id, getattr(settings, "eos_token_id", None)):
        if isinstance(end, int):
            found.add(end)
        elif end is not None:
            found.update(int(token) for token in end)
    turn_end = _turn_end(tokenizer)
    if turn_end is not None:
        found.add(turn_end)
    return frozenset(found)


def _turn_end(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """The special token that follows an answer in the template, or None."""
    messages = [
        {"role": "user", "content": "question"},
        {"role": "assistant", "content": _CONTENT},
    ]
    try:
        text = str(_render(tokenizer, messages, add_generation_prompt=False, tokenize=False))
    except TemplateError:
        return None
    before, found, after = text.rpartition(_CONTENT)
    if not found or not before:
        return None
    ids: list[int] = tokenizer(after.lstrip(), add_special_tokens=False)["input_ids"]
    if not ids:
        return None
    token = tokenizer.added_tokens_decoder.get(ids[0])
    return ids[0] if token is not None and token.special else None
