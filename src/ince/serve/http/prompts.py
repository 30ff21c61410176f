"""Texts and conversations to token ids, without holding up the event loop.

A megabyte takes the tokenizer a second. Short texts are encoded where they are, since handing
them to another thread costs more than the work; long ones go to one thread of their own.
"""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from ince.errors import InputError, TemplateError
from ince.serve.http.errors import ApiError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Prompts"]

_LONG_CHARACTERS = 4_000
# What a caller may not set through a template's arguments.
_RESERVED = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "max_length",
        "messages",
        "padding",
        "processor_kwargs",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "documents",
        "truncation",
    }
)


class Prompts:
    """Encodes for one tokenizer and one length of context."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", context_length: int) -> None:
        self._tokenizer = tokenizer
        self._context_length = context_length
        self._num_tokens = len(tokenizer)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ince-tokenizer")

    async def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text, with the tokens that the model puts around one if `special`."""
        return await self._away(len(text), lambda: self._encode(text, special))

    async def render(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        arguments: Mapping[str, Any],
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> list[int]:
        """Token ids of a conversation, up to where its answer begins.

        Raises:
            TemplateError: the model has no template, or it refuses the conversation.
            ApiError: an argument that is not the caller's to set.
        """
        reserved = sorted(_RESERVED & arguments.keys())
        if reserved:
            raise ApiError(
                400,
                f"chat_template_kwargs: {', '.join(reserved)} cannot be set here.",
                param="chat_template_kwargs",
                code="invalid_value",
            )
        settings = dict(arguments)
        settings["add_generation_prompt"] = add_generation_prompt
        settings["continue_final_message"] = continue_final_message
        length = sum(len(message["content"]) for message in messages)

        def work() -> list[int]:
            return self._encode(self._render(list(messages), settings), special=False)

        return await self._away(length, work)

    async def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""
        return await self._away(
            len(tokens) * 4,
            lambda: str(
                self._tokenizer.decode(
                    list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False
                )
            ),
        )

    def check_tokens(self, tokens: Sequence[int], *, param: str) -> None:
        """Refuse ids that the model does not have.

        Raises:
            ApiError: naming the first of them.
        """
        for token in tokens:
            if not 0 <= token < self._num_tokens:
                raise ApiError(
                    400,
                    f"{param}: {token} is no token of this model, which has {self._num_tokens}.",
                    param=param,
                    code="invalid_value",
                )

    def check_length(self, num_tokens: int, max_tokens: int | None, *, param: str) -> int:
        """The tokens that an answer may have.

        Raises:
            ApiError: the prompt is empty, or does not fit with an answer of `max_tokens`.
        """
        if num_tokens < 1:
            raise ApiError(400, f"{param}: the prompt is empty.", param=param, code="empty_prompt")
        room = self._context_length - num_tokens
        wanted = 1 if max_tokens is None else max_tokens
        if room < wanted:
            answer = "" if max_tokens is None else f" and {max_tokens} of the answer"
            raise ApiError(
                400,
                f"This model's maximum context length is {self._context_length} tokens. The "
                f"request has {num_tokens} tokens of the prompt{answer}.",
                param=param,
                code="context_length_exceeded",
            )
        return room if max_tokens is None else max_tokens

    async def _away(self, length: int, work: Any) -> Any:
        if length <= _LONG_CHARACTERS:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _encode(self, text: str, special: bool) -> list[int]:
        encoded = self._tokenizer(text, add_special_tokens=special, verbose=False)
        return list(encoded["input_ids"])

    def _render(self, messages: list[Mapping[str, str]], settings: dict[str, Any]) -> str:
        if not self._tokenizer.chat_template:
            raise TemplateError(
                "this model has no chat template, so it cannot be talked to",
                do="use /v1/completions",
            )
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    [dict(message) for message in messages], tokenize=False, **settings
                )
            )
        except InputError:
            raise
        except Exception as error:  # templates are programs, and raise what they like
            raise TemplateError(
                "the model's chat template cannot render this conversation",
                got=f"{error}; roles: " + ", ".join(message["role"] for message in messages),
                do="some templates refuse a system message, or turns that do not alternate",
            ) from error
