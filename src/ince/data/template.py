"""Conversations to token ids, and the mask of what is learnt, under a contract that fails.

Learnt is what the model has to write: the words of an assistant turn and the token that ends
it. Three faults are common and do not show in the loss: a stop token that is never learnt, a
mask that truncation empties, and tokens that the model never meets because the text was cut
elsewhere than where generation begins. So here

- the tokens before each turn are exactly those that the model is prompted with,
- after truncation an example has at least one target, and each turn that is kept whole has its
  stop token among the targets; otherwise there is no example but an error,
- text that contains the template's own control tokens is refused.

What follows the last stop token (most templates write a line end) is cut off: no target ever
sees it.
"""

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from ince.data.config import LossOn, Truncation
from ince.data.conversation import Conversation, Document, Message
from ince.data.example import Example
from ince.data.turns import ChatTemplate, Turn
from ince.errors import DataError, TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Encoded", "Encoder", "TurnTokens", "encode"]

_PROBE = (Message("user", "a"), Message("assistant", "b"))


@dataclass(frozen=True)
class TurnTokens:
    """A turn that is learnt, in tokens: from `first` to `stop`, both included."""

    first: int
    stop: int


@dataclass(frozen=True)
class Encoded:
    """A whole conversation or document in tokens, before truncation."""

    input_ids: tuple[int, ...]
    targets: tuple[bool, ...]
    turns: tuple[TurnTokens, ...]
    source: str

    @property
    def num_tokens(self) -> int:
        """Length before truncation."""
        return len(self.input_ids)

    def truncate(self, max_length: int) -> Example:
        """The first `max_length` tokens, with the mask contract checked on them.

        Raises:
            DataError: nothing that could be learnt is left.
            TemplateError: a turn that is kept whole would not learn its stop token.
        """
        targets = self.targets[:max_length]
        if not any(targets):
            first = next((i for i, target in enumerate(self.targets) if target), None)
            raise DataError(
                "no token to learn is left within max_length",
                got=f"the first reply begins after {first} tokens, max_length is {max_length}"
                if first is not None
                else "nothing to learn",
            )
        for turn in self.turns:
            if turn.stop < max_length and not all(targets[turn.first : turn.stop + 1]):
                raise TemplateError("a turn would not learn its words and its stop token")
        cut = max(0, self.num_tokens - max_length)
        return Example(self.input_ids[:max_length], targets, self.source, cut)


class Encoder:
    """Encodes with one tokenizer; what the tokenizer's template needs is found out once.

    Raises:
        TemplateError: the tokenizer does not tell where its tokens stand in the text.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        if not tokenizer.is_fast:
            raise TemplateError(
                "the tokenizer does not tell where its tokens stand in the text",
                where=tokenizer.name_or_path,
                do="use the fast tokenizer of the model (a tokenizer.json)",
            )
        self._tokenizer = tokenizer
        self._template: ChatTemplate | None = None
        self._control: dict[int, str] | None = None

    @property
    def template(self) -> ChatTemplate:
        """The chat template.

        Raises:
            TemplateError: the model has none.
        """
        if self._template is None:
            self._template = ChatTemplate(self._tokenizer)
        return self._template

    def encode(self, item: Conversation | Document, *, loss_on: LossOn) -> Encoded:
        """Tokens and targets of the whole of `item`.

        Raises:
            TemplateError: the chat template cannot render it, or its turns cannot be told apart.
            DataError: its text contains control tokens of the model.
        """
        if isinstance(item, Document):
            return self._encode_document(item)
        return self._encode_conversation(item, loss_on)

    # ------------------------------------------------------------------------- control tokens

    def _control_tokens(self) -> dict[int, str]:
        """The tokens that give a conversation its form, by id: stops, beginnings, headers."""
        if self._control is None:
            added = self._tokenizer.added_tokens_decoder
            special = {i: token.content for i, token in added.items() if token.special}
            ends = self._end_tokens()
            try:
                used = {*ends, *self._tokens(self.template.render(_PROBE))[0]}
            except TemplateError:
                # No template, or one that wants another conversation: any of them may matter.
                used = {*ends, *special}
            self._control = ends | {i: text for i, text in special.items() if i in used}
        return self._control

    def _end_tokens(self) -> dict[int, str]:
        tokenizer = self._tokenizer
        pairs = (
            (tokenizer.bos_token_id, tokenizer.bos_token),
            (tokenizer.eos_token_id, tokenizer.eos_token),
        )
        return {i: str(text) for i, text in pairs if isinstance(i, int)}

    def _refuse_control_tokens(self, text: str) -> None:
        tokens = "|".join(re.escape(token) for token in self._control_tokens().values() if token)
        found = re.search(tokens, text) if tokens else None
        if found is not None:
            raise DataError("the text contains a control token of the model", got=found[0])

    # --------------------------------------------------------------------------------- tokens

    def _tokens(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of `text`, and (start, end) of each in it, in characters."""
        encoded = self._tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        return list(encoded["input_ids"]), [(int(a), int(b)) for a, b in encoded["offset_mapping"]]

    def _decode(self, ids: list[int]) -> str:
        return str(
            self._tokenizer.decode(
                ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def _tokens_cut_at(
        self, text: str, starts: list[int]
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokens of `text` such that at each of `starts` a token starts.

        As a whole, when the tokens before each start are those of the prompt by itself. Else in
        pieces: a line end of the prompt and one of the reply may share a token in the whole text,
        which generation, where the reply comes token by token, never sees.
        """
        ids, offsets = self._tokens(text)
        aligned = all(not a < start < b for start in starts for a, b in offsets)
        if aligned and all(
            self._tokens(text[:start])[0] == ids[: _index_at(offsets, start)] for start in starts
        ):
            return ids, offsets
        piece_ids: list[int] = []
        piece_offsets: list[tuple[int, int]] = []
        for begin, end in pairwise([0, *starts, len(text)]):
            some_ids, some_offsets = self._tokens(text[begin:end])
            piece_ids += some_ids
            piece_offsets += [(begin + a, begin + b) for a, b in some_offsets]
        if self._decode(piece_ids) == self._decode(ids):
            return piece_ids, piece_offsets
        if aligned:  # Tokenizers that begin every text with a space cannot be fed in pieces.
            return ids, offsets
        raise TemplateError("a token reaches across the beginning of a reply")

    # --------------------------------------------------------------------- conversations, texts

    def _encode_conversation(self, conversation: Conversation, loss_on: LossOn) -> Encoded:
        for message in conversation.messages:
            self._refuse_control_tokens(message.content)
        messages = conversation.messages
        while messages and messages[-1].role != "assistant":
            messages = messages[:-1]  # Nothing after the last reply is seen by any target.
        if not messages:
            raise DataError("no assistant turn")
        text, turns = self.template.find_turns(
            Conversation(messages, conversation.source), only_last=loss_on != "assistant"
        )
        ids, offsets = self._tokens_cut_at(text, [turn.start for turn in turns])
        spans = self._turn_tokens(ids, offsets, turns)
        length = spans[-1].stop + 1
        targets = [loss_on == "all"] * length
        for span in spans:
            targets[span.first : span.stop + 1] = [True] * (span.stop + 1 - span.first)
        targets[0] = False
        return Encoded(tuple(ids[:length]), tuple(targets), tuple(spans), conversation.source)

    def _turn_tokens(
        self, ids: list[int], offsets: list[tuple[int, int]], turns: list[Turn]
    ) -> list[TurnTokens]:
        control = self._control_tokens()
        spans: list[TurnTokens] = []
        ends = [turn.start for turn in turns[1:]] + [offsets[-1][1] + 1]
        for turn, end in zip(turns, ends, strict=True):
            first = _index_at(offsets, turn.start)
            after = range(_index_at(offsets, turn.content_end), _index_at(offsets, end))
            stop = next((i for i in after if ids[i] in control), None)
            # Without a stop token of its own, a turn seems to end with the next one's header;
            # but then the last turn, after which nothing comes, ends with none.
            if stop is None:
                raise TemplateError(
                    "the chat template ends a reply with no stop token",
                    got=self._decode(ids[first:]),
                    do="end assistant turns with the tokenizer's eos token in the chat template",
                )
            spans.append(TurnTokens(first, stop))
        stops = {ids[span.stop] for span in spans}
        if len(stops) > 1:
            raise TemplateError(
                "the chat template ends replies with different tokens",
                got=", ".join(control[token] for token in sorted(stops)),
                do="train on the last turn alone with loss_on: last",
            )
        return spans

    def _encode_document(self, document: Document) -> Encoded:
        self._refuse_control_tokens(document.text)
        stop = self._tokenizer.eos_token_id
        if not isinstance(stop, int):
            raise TemplateError(
                "the tokenizer has no end token, so a text would have no end",
                where=self._tokenizer.name_or_path,
            )
        ids = list(self._tokenizer(document.text, verbose=False)["input_ids"])
        if ids[-1:] != [stop]:
            ids.append(stop)
        targets = (False, *[True] * (len(ids) - 1))
        return Encoded(tuple(ids), targets, (), document.source)


def _index_at(offsets: list[tuple[int, int]], start: int) -> int:
    """Index of the first token that starts at character `start` or later."""
    return next((i for i, (a, _) in enumerate(offsets) if a >= start), len(offsets))


def encode(
    conversation: Conversation | Document,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int,
    loss_on: LossOn = "assistant",
    truncation: Truncation = "right",
) -> Example:
    """One conversation or document as an example; `Encoder` serves many.

    Args:
        conversation: with an assistant turn.
        tokenizer: of the model, with its chat template.
        max_length: most tokens of the example.
        loss_on: which tokens are learnt, see `DataConfig.loss_on`.
        truncation: ``right`` cuts, ``drop`` raises for what is too long.

    Raises:
        TemplateError: the chat template cannot render it, or its turns cannot be told apart.
        DataError: it is too long, nothing to learn is left, or its text contains control tokens.
    """
    encoded = Encoder(tokenizer).encode(conversation, loss_on=loss_on)
    if truncation == "drop" and encoded.num_tokens > max_length:
        raise DataError(
            "longer than max_length",
            got=f"{encoded.num_tokens} tokens",
            expected=f"at most {max_length}",
        )
    return encoded.truncate(max_length)
