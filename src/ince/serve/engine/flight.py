"""One request while it is with the engine: what its listener was told, and what comes next."""

import logging
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from ince.errors import InceError
from ince.serve.engine.events import (
    Event,
    Failed,
    Finished,
    FinishReason,
    PromptLogprobs,
    Started,
    Token,
)
from ince.serve.engine.request import GenerationRequest
from ince.serve.engine.schedule import StepRow
from ince.serve.engine.sequence import SequenceState
from ince.serve.sampling import NO_TOKEN, RowState, TextStream, TokenLogprob, token_logprobs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Flight"]

_log = logging.getLogger("ince.serve")


class Flight:
    """A request, its sequence, and its listener, who hears of one end exactly.

    Args:
        request: as it was submitted.
        listener: is told events; where it raises, the request is over.
        tokenizer: of the model.
        stop_tokens: the model's own.
    """

    def __init__(
        self,
        request: GenerationRequest,
        listener: Callable[[Event], None],
        tokenizer: "PreTrainedTokenizerBase",
        stop_tokens: frozenset[int],
    ) -> None:
        options = request.options
        self.request = request
        self.sequence = SequenceState(
            request.prompt,
            max_tokens=options.max_tokens,
            tenant=request.tenant,
            adapter=request.adapter,
            salt=request.cache_salt,
            deadline=request.deadline,
            every_logit=options.prompt_logprobs is not None,
            owner=self,
        )
        self.state = RowState(options, request.prompt, secrets.randbits(63))
        self.is_over = False
        """Nothing is told any more."""
        self.is_removed = False
        """The scheduler knows nothing of it any more."""
        self._listener = listener
        self._text = TextStream(tokenizer, options.stop)
        self._stop_tokens = frozenset() if options.ignore_eos else stop_tokens
        self._prompt_logprobs: list[TokenLogprob | None] = []
        if options.prompt_logprobs is not None:
            self._prompt_logprobs = [None] * len(request.prompt)

    def start(self) -> None:
        """Say that the first step comes."""
        self._tell(Started(len(self.request.prompt), self.sequence.cached_tokens or 0))

    def read(self, row: StepRow, logits_WV: Tensor) -> None:
        """Take note of the prompt's log probabilities, and say them when they are all there."""
        count = self.request.options.prompt_logprobs
        if count is None or not self.sequence.every_logit:
            return
        # Logits at a place are about the token after it.
        first, stop = row.start + 1, min(row.start + row.count + 1, len(self.request.prompt))
        tokens = self.request.prompt[first:stop]
        self._prompt_logprobs[first:stop] = token_logprobs(logits_WV[: len(tokens)], tokens, count)
        if row.is_last:
            self.sequence.every_logit = False
            self._tell(PromptLogprobs(self._prompt_logprobs))

    def take(self, token: int, logprob: TokenLogprob | None) -> None:
        """Tell the token that was chosen; where it ends the answer, tell that as well.

        Raises:
            InceError: there is no token.
        """
        if token == NO_TOKEN:
            raise InceError(
                "the model's logits are not numbers",
                where=self.request.adapter or "the base",
                do="look at the weights of the adapter: they overflow or are not numbers",
            )
        options = self.request.options
        self.state.add(token)
        is_own_stop = token in self._stop_tokens
        is_stop = is_own_stop or token in options.stop_token_ids
        # A token that ends the answer is no text of it.
        text = self._text.finish() if is_stop else self._text.add(token)
        is_full = self.state.num_tokens >= options.max_tokens
        if is_full and not is_stop:
            text += self._text.finish()
        self._tell(Token(token, text, logprob))
        if self._text.stopped and not is_own_stop:
            self.finish("stop", self._text.matched)
        elif is_stop:
            self.finish("stop", None if is_own_stop else token)
        elif is_full:
            self.finish("length")

    def finish(self, reason: FinishReason, stop_reason: str | int | None = None) -> None:
        """Tell the end."""
        self._end(
            Finished(
                reason,
                stop_reason,
                prompt_tokens=len(self.request.prompt),
                completion_tokens=self.state.num_tokens,
                cached_tokens=self.sequence.cached_tokens or 0,
            )
        )

    def fail(self, error: BaseException) -> None:
        """Tell that it ends in an error."""
        if not isinstance(error, InceError):
            cause = error
            error = InceError(
                "the server failed at this request",
                where=self.request.request_id,
                got=f"{type(cause).__name__}: {cause}",
            )
            error.__cause__ = cause
        self._end(Failed(error))

    def _end(self, event: Finished | Failed) -> None:
        if not self.is_over:
            self.is_over = True
            self._call(event)

    def _tell(self, event: Event) -> None:
        if not self.is_over and not self._call(event):
            self.is_over = True  # whoever cannot listen is not told an end either

    def _call(self, event: Event) -> bool:
        try:
            self._listener(event)
        except Exception:  # a stranger's: nothing of it may reach the other requests
            _log.exception("the listener of request %r failed", self.request.request_id)
            return False
        return True
