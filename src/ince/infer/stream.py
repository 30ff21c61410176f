"""One answer, piece by piece, as it is written.

A token is not a piece of text: a letter such as ğ or an emoji may take several tokens,
and a tokenizer may put a space before a word only when something precedes it. So text is
held back until it is whole, and each piece is what the decoded text grew by.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ince.errors import InputError
from ince.infer.decode import check_room, decode
from ince.infer.mode import evaluating
from ince.infer.prompt import Turn, encode_prompt, stop_tokens
from ince.infer.sampling import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["PieceDecoder", "stream"]

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
# Of a letter that is not whole there are three bytes at most, each of which may show as one mark.
_MAX_UNFINISHED = 3
# After so many tokens without a whole letter, what is not part of the last was never one.
_MAX_HELD_TOKENS = 8


class PieceDecoder:
    """Token ids in, text out as soon as it is certain.

    >>> pieces = PieceDecoder(tokenizer)
    >>> text = "".join(pieces.add(token) for token in tokens) + pieces.finish()
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        # Text up to _shown is out. Decoding restarts a little before it, since what a
        # token decodes to depends on its neighbor, and never at the beginning, since
        # that would make a long answer cost the square of its length.
        self._tokens: list[int] = []
        self._context = 0
        self._shown = 0
        self._open = 0  # characters at the end of that text that are not out after all

    def add(self, token: int) -> str:
        """What can be shown now that `token` has come; often one word, sometimes nothing."""
        self._tokens.append(token)
        return self._grown(final=False)

    def finish(self) -> str:
        """What was held back; bytes that never became a character show as U+FFFD."""
        return self._grown(final=True)

    def _grown(self, *, final: bool) -> str:
        before = self._text(self._tokens[self._context : self._shown])
        now = self._text(self._tokens[self._context :])
        start, stop = len(before) - self._open, len(now)
        if now.endswith(_UNFINISHED) and not final:
            if len(self._tokens) - self._shown <= _MAX_HELD_TOKENS:
                return ""
            # Else a stream of broken letters would be decoded from its beginning at each token.
            stop = max(len(now.rstrip(_UNFINISHED)), len(now) - _MAX_UNFINISHED)
        if stop <= start:
            return ""
        self._context, self._shown = self._shown, len(self._tokens)
        self._open = len(now) - stop
        return now[start:stop]

    def _text(self, tokens: list[int]) -> str:
        return str(
            self._tokenizer.decode(
                tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )


def stream(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    conversation: Sequence[Turn],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[str]:
    """Yield the answer to one conversation in pieces of text.

    The pieces together are what `generate` returns for the conversation alone. Arguments
    and errors as there. Closing the iterator early leaves the model as it was.
    """
    if max_new_tokens < 1:
        raise InputError("generation needs room for a token", got=max_new_tokens)
    sampling = Sampling(temperature, top_p, seed)
    prompt = encode_prompt(tokenizer, conversation)
    room = check_room(model, len(prompt), max_new_tokens)
    stops = stop_tokens(model, tokenizer)
    pieces = PieceDecoder(tokenizer)
    with evaluating(model, expand=True):
        for new in decode(
            model,
            [prompt],
            rows=[0],
            stops=stops,
            pad_id=0,
            limits=[room],
            sampling=sampling,
        ):
            token = new[0][1]
            if token not in stops and (piece := pieces.add(token)):
                yield piece
    if rest := pieces.finish():
        yield rest
