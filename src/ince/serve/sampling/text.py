"""`TextStream`: the text of one answer as it is written, up to where a stop text begins.

Text that may yet become a stop is held back: what was sent cannot be taken again. The stop that is
complete first ends the answer, of several that end together the longest; so the text does not
depend on how it was cut into tokens.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ince.infer.stream import PieceDecoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TextStream"]


class TextStream:
    """Token ids in, text out as soon as it is certain.

    Args:
        tokenizer: of the model. Special tokens give no text; a stop that is the text of one is
            met by the token.
        stop: texts that end the answer.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", stop: Sequence[str] = ()) -> None:
        self._decoder = PieceDecoder(tokenizer)
        self._search = [_StopSearch(text) for text in stop]
        self._special = _special_tokens(tokenizer, stop)
        self._held = ""
        self.matched: str | None = None
        """The stop that ended the answer."""

    @property
    def stopped(self) -> bool:
        """Whether a stop ended the answer; nothing comes after it."""
        return self.matched is not None

    def add(self, token: int) -> str:
        """What can be shown now that `token` has come."""
        if self.stopped:
            return ""
        special = self._special.get(token)
        if special is not None:
            shown = self.finish()
            self.matched = self.matched or special
            return shown
        return self._take(self._decoder.add(token))

    def finish(self) -> str:
        """What was held back, once no token comes any more."""
        if self.stopped:
            return ""
        shown = self._take(self._decoder.finish())
        if not self.stopped:
            shown, self._held = shown + self._held, ""
        return shown

    def _take(self, piece: str) -> str:
        if not self._search:
            return piece
        text = self._held + piece
        for place, character in enumerate(piece, start=len(self._held) + 1):
            ended = [each for each in self._search if each.advance(character)]
            if ended:
                longest = max(ended, key=lambda each: len(each.text))
                self.matched, self._held = longest.text, ""
                return text[: place - len(longest.text)]
        certain = len(text) - max(each.num_matched for each in self._search)
        self._held = text[certain:]
        return text[:certain]


class _StopSearch:
    """How far the end of a growing text is the beginning of a stop (Knuth, Morris, Pratt)."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.num_matched = 0
        self._shorter = [0] * (len(text) + 1)
        length = 0
        for place in range(1, len(text)):
            while length and text[place] != text[length]:
                length = self._shorter[length]
            length += text[place] == text[length]
            self._shorter[place + 1] = length

    def advance(self, character: str) -> bool:
        """Whether the stop is complete with `character`."""
        length = self.num_matched
        while length and self.text[length] != character:
            length = self._shorter[length]
        self.num_matched = length + (self.text[length] == character)
        return self.num_matched == len(self.text)


def _special_tokens(tokenizer: "PreTrainedTokenizerBase", stop: Sequence[str]) -> dict[int, str]:
    """The stops that are special tokens, which a decoded text does not show."""
    if not stop:
        return {}
    wanted = set(stop)
    return {
        token: str(added.content)
        for token, added in tokenizer.added_tokens_decoder.items()
        if added.special and str(added.content) in wanted
    }
