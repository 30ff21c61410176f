"""`EngineSpeaker`: the engine of ``ince serve``, in this process and for one conversation.

Its KV cache holds one sequence of the model's full length, in memory that is taken as it fills. So
a turn computes what is new since the turn before, and what an adapter read stays its own while
another one answers.
"""

import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ince.errors import InceError, InputError, ModelReferenceError
from ince.formats.adapter import adapter_digest
from ince.infer import Turn, evaluating
from ince.infer.decode import check_room
from ince.infer.prompt import encode_prompt
from ince.serve.adapters import Folders
from ince.serve.engine import Event, Failed, Finished, GenerationRequest, Token
from ince.serve.engine.blocks import BLOCK_SIZE
from ince.serve.opening import opened
from ince.serve.sampling import SamplingOptions
from ince.serve.speak.speaker import AnswerOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["EngineSpeaker"]

# A person visits a few adapters, and goes back and forth between fewer.
_NUM_SLOTS = 4
_ADAPTER_BYTES = 4 << 30
# One answers; others are there only until it is noticed that they were cut short.
_MAX_RUNNING = 1
_MAX_WAITING = 8
# A step of the model may take long, and one that was cut short ends with its step.
_END_SECONDS = 30.0
_NUM_SEEDS = 2**63


class EngineSpeaker:
    """Answers by the engine; see `Speaker`.

    Args:
        model: the base, without adapters; the engine's until `close`.
        tokenizer: its own.
        has_adapters: whether adapters may be loaded.

    Raises:
        ModelReferenceError: the engine does not compute the model, or not its whole context.
        InputError: there is no memory for a KV cache.
        ProofError: the model's logits are others in the engine than alone.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        *,
        has_adapters: bool = False,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._folders: dict[str, Path] = {}
        self._digests: dict[Path, str] = {}
        self._loaded = threading.Event()
        with ExitStack() as stack:
            # Weights of 4 bits are expanded once, and not at each token.
            stack.enter_context(evaluating(model, expand=True))
            running = stack.enter_context(
                opened(
                    model,
                    tokenizer,
                    source=Folders(self._folders) if has_adapters else None,
                    num_slots=_NUM_SLOTS,
                    adapter_bytes=_ADAPTER_BYTES,
                    max_running=_MAX_RUNNING,
                    max_waiting=_MAX_WAITING,
                )
            )
            self.engine, self._tiers = running.engine, running.tiers
            _check_whole_context(model, self.engine.context_length)
            if self._tiers is not None:
                self._tiers.listen(self._loaded.set)
            self._open = stack.pop_all()
        self._room = min(
            self.engine.context_length, self.engine.stats().kv_blocks_total * BLOCK_SIZE
        )

    def load(self, adapter: Path) -> None:
        """See `Speaker`. What its files are now is what answers, whatever they were before."""
        tiers = self._tiers
        if tiers is None:
            raise InputError("no adapters were asked for", got=adapter)
        digest = adapter_digest(adapter)
        self._folders[digest] = adapter
        if tiers.state(digest) == "failed":
            tiers.forget(digest)
        while (state := tiers.state(digest)) not in ("device", "memory"):
            if state == "failed":
                raise tiers.error(digest) or InceError("the adapter cannot be loaded")
            self._loaded.clear()
            tiers.prefetch(digest)
            # Not for ever: between the two it may have been loaded.
            self._loaded.wait(0.1)
        self._digests[adapter] = digest

    def answer(
        self, conversation: Sequence[Turn], adapter: Path | None, options: AnswerOptions
    ) -> Iterator[str]:
        """See `Speaker`."""
        if adapter is not None and adapter not in self._digests:
            self.load(adapter)
        prompt = encode_prompt(self._tokenizer, conversation)
        request = GenerationRequest(
            request_id="chat",
            prompt=tuple(prompt),
            options=SamplingOptions(
                max_tokens=self._most_new(len(prompt), options.max_new_tokens),
                temperature=options.temperature,
                top_p=options.top_p,
                seed=options.seed % _NUM_SEEDS,
            ),
            adapter=None if adapter is None else self._digests[adapter],
        )
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        handle = self.engine.submit(request, events.put)
        is_over = False
        try:
            while not is_over:
                event = events.get()
                if isinstance(event, Failed):
                    is_over = True
                    raise event.error
                if isinstance(event, Token) and event.text:
                    yield event.text
                is_over = isinstance(event, Finished)
        finally:
            if not is_over:
                handle.cancel()
                with suppress(queue.Empty):
                    while not isinstance(events.get(timeout=_END_SECONDS), Finished | Failed):
                        pass

    def close(self) -> None:
        """See `Speaker`."""
        self._open.close()

    def _most_new(self, num_prompt_tokens: int, max_new_tokens: int) -> int:
        """How long the answer may be.

        Raises:
            InputError: there is no room for a token.
        """
        room = check_room(self._model, num_prompt_tokens, max_new_tokens)
        if num_prompt_tokens >= self._room:
            raise InputError(
                "the conversation fills the memory that there is for it",
                got=f"{num_prompt_tokens} tokens",
                expected=f"fewer than {self._room}",
                do="shorten the prompt, or start a new conversation",
            )
        return min(room, self._room - num_prompt_tokens)


def _check_whole_context(model: Any, num_tokens: int) -> None:
    """Refuse a model that reads more by itself, as with a rotation that grows with the text.

    Raises:
        ModelReferenceError: it does.
    """
    own = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(own, int) and own > num_tokens:
        raise ModelReferenceError(
            "the engine reads less than the model's whole context",
            got=f"{num_tokens} of {own} tokens",
        )
