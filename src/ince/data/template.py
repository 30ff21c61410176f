"""Rows to token ids, and the mask of what is learnt, under a contract that fails.

Learnt is what the model has to write: the words of an assistant turn and the token that ends
it. Three faults are common and do not show in the loss: a stop token that is never learnt, a
mask that truncation empties, and tokens that the model never meets because the text was cut
elsewhere than where generation begins. So here

- the tokens before each turn are exactly those that the model is prompted with,
- each turn that is learnt has a stop token of its own, or there is an error and no example,
- text that contains the template's own control tokens is refused.

What follows the last stop token (most templates write a line end) is cut off: no target ever
sees it. Rows that are too long are the business of `ince.data.truncation`, and what holds
after that of `ince.data.contract`.
"""

import contextlib
import re
from bisect import bisect_left
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

from ince.data.config import LossOn
from ince.data.conversation import Completion, Conversation, Document, Item, Message
from ince.data.encoded import Encoded, TurnTokens
from ince.data.turns import ChatTemplate, Turn
from ince.errors import DataError, TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Encoder"]

_MAX_BEGINNINGS = 1024
_PROBE = (Message("user", "a"), Message("assistant", "b"))


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
        # Few ids occur often: one object for each saves more than half of a split's memory.
        self._ids: dict[int, int] = {}
        self._beginnings: dict[str, list[int]] = {}

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer that it encodes with."""
        return self._tokenizer

    @cached_property
    def template(self) -> ChatTemplate:
        """The chat template.

        Raises:
            TemplateError: the model has none.
        """
        return ChatTemplate(self._tokenizer)

    def encode(self, item: Item, *, loss_on: LossOn) -> Encoded:
        """Tokens and targets of the whole of `item`.

        Raises:
            TemplateError: the chat template cannot render it, or its turns cannot be told apart.
            DataError: its text contains control tokens of the model.
        """
        if isinstance(item, Document):
            return self._encode_document(item)
        if isinstance(item, Completion):
            return self._encode_completion(item, loss_on)
        return self._encode_conversation(item, loss_on)

    # ------------------------------------------------------------------------- control tokens

    @cached_property
    def control_tokens(self) -> dict[int, str]:
        """The tokens that give a conversation its form, by id: stops, beginnings, headers."""
        ends = self._end_tokens()
        try:
            used = {*ends, *self._tokens(self.template.render(_PROBE))[0]}
        except TemplateError:
            # No template, or one that wants another conversation: any of them may matter.
            used = {*ends, *self._special}
        return ends | {i: text for i, text in self._special.items() if i in used}

    @cached_property
    def _special(self) -> dict[int, str]:
        added = self._tokenizer.added_tokens_decoder
        return {i: token.content for i, token in added.items() if token.special}

    @cached_property
    def _control_pattern(self) -> re.Pattern[str] | None:
        tokens = "|".join(re.escape(token) for token in self.control_tokens.values() if token)
        return re.compile(tokens) if tokens else None

    def _end_tokens(self) -> dict[int, str]:
        tokenizer = self._tokenizer
        pairs = (
            (tokenizer.bos_token_id, tokenizer.bos_token),
            (tokenizer.eos_token_id, tokenizer.eos_token),
        )
        return {i: str(text) for i, text in pairs if isinstance(i, int)}

    def _refuse_control_tokens(self, text: str) -> None:
        found = self._control_pattern.search(text) if self._control_pattern else None
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
        aligned = not any(_cuts_a_token(offsets, start) for start in starts)
        if aligned and all(self._begins_as(text[:start], ids, offsets) for start in starts):
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

    def _begins_as(self, prompt: str, ids: list[int], offsets: list[tuple[int, int]]) -> bool:
        """Whether the first of `ids` are the tokens of `prompt` by itself.

        A special token splits a text into parts that are tokenized each for itself, so what
        comes after the prompt's last one decides: a header such as ``assistant``, which is the
        same in every row.
        """
        end = _index_at(offsets, len(prompt))
        last = next((i for i in range(end - 1, -1, -1) if ids[i] in self._special), None)
        if last is None:
            return ids[:end] == self._tokens(prompt)[0]
        tail = prompt[offsets[last][0] :]
        if tail not in self._beginnings:
            if len(self._beginnings) >= _MAX_BEGINNINGS:
                self._beginnings.clear()
            self._beginnings[tail] = self._tokens(tail)[0]
        return ids[last:end] == self._beginnings[tail]

    # --------------------------------------------------------------------- conversations, texts

    def message_starts(self, conversation: Conversation, *, loss_on: LossOn) -> list[int]:
        """The token with which each message begins, header included, up to the last reply.

        The first is not 0 where the template puts words of its own before it.
        """
        conversation = _up_to_last_reply(conversation)
        text, turns = self._find_turns(conversation, loss_on)
        _, offsets = self._tokens_cut_at(text, [turn.start for turn in turns])
        starts = self.template.message_starts(text, conversation.messages)
        return [_index_at(offsets, start) for start in starts]

    def _encode_conversation(self, conversation: Conversation, loss_on: LossOn) -> Encoded:
        for message in conversation.messages:
            self._refuse_control_tokens(message.content)
        conversation = _up_to_last_reply(conversation)
        if loss_on == "completion" and len(conversation.messages) <= conversation.num_prompt:
            raise DataError("no assistant turn in the completion")
        text, turns = self._find_turns(conversation, loss_on)
        ids, offsets = self._tokens_cut_at(text, [turn.start for turn in turns])
        spans = self._turn_tokens(ids, offsets, turns)
        length = spans[-1].stop + 1
        targets = [loss_on == "all"] * length
        for span in spans:
            targets[span.first : span.stop + 1] = [True] * (span.stop + 1 - span.first)
        targets[0] = False  # Nothing comes before the first token.
        return self._encoded(ids[:length], targets, spans, conversation.source)

    def _find_turns(self, conversation: Conversation, loss_on: LossOn) -> tuple[str, list[Turn]]:
        last = len(conversation.messages) - 1
        if loss_on == "all":
            # Where all is learnt, turns are found for their stop tokens alone. A template that
            # rewrites earlier turns teaches what it makes of them.
            with contextlib.suppress(TemplateError):
                return self.template.find_turns(conversation)
        first = {"assistant": 0, "completion": conversation.num_prompt}.get(loss_on, last)
        return self.template.find_turns(conversation, from_message=first)

    def _encoded(
        self,
        ids: list[int],
        targets: list[bool],
        turns: list[TurnTokens],
        source: str,
        num_start: int = 0,
    ) -> Encoded:
        same = self._ids.setdefault
        return Encoded(tuple(map(same, ids, ids)), tuple(targets), tuple(turns), source, num_start)

    def _turn_tokens(
        self, ids: list[int], offsets: list[tuple[int, int]], turns: list[Turn]
    ) -> list[TurnTokens]:
        control = self.control_tokens
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

    def _stop_of(self, kind: str) -> int:
        stop = self._tokenizer.eos_token_id
        if not isinstance(stop, int):
            raise TemplateError(
                f"the tokenizer has no end token, so a {kind} would have no end",
                where=self._tokenizer.name_or_path,
            )
        return stop

    @cached_property
    def _start(self) -> list[int]:
        """What the tokenizer puts before every text: a beginning token, or nothing."""
        alone = self._tokens("a")[0]
        whole = list(self._tokenizer("a", verbose=False)["input_ids"])
        places = [i for i in range(len(whole)) if whole[i : i + len(alone)] == alone]
        return whole[: places[0]] if places else []

    def _encode_document(self, document: Document) -> Encoded:
        self._refuse_control_tokens(document.text)
        stop = self._stop_of("text")
        ids = list(self._tokenizer(document.text, verbose=False)["input_ids"])
        if ids[-1:] != [stop]:
            ids.append(stop)
        num_start = len(self._start) if ids[: len(self._start)] == self._start else 0
        targets = [False, *[True] * (len(ids) - 1)]
        turns = [TurnTokens(1, len(ids) - 1)] if len(ids) > 1 else []
        return self._encoded(ids, targets, turns, document.source, num_start)

    def _encode_completion(self, item: Completion, loss_on: LossOn) -> Encoded:
        for text in (item.prompt, item.text):
            self._refuse_control_tokens(text)
        stop = self._stop_of("completion")
        text = item.prompt + item.text
        body, offsets = self._tokens_cut_at(text, [len(item.prompt)])
        ids = [*self._start, *body, stop]
        first = max(1, len(self._start) + _index_at(offsets, len(item.prompt)))
        targets = [loss_on == "all" or i >= first for i in range(len(ids))]
        targets[0] = False
        turns = [TurnTokens(first, len(ids) - 1)]
        return self._encoded(ids, targets, turns, item.source, len(self._start))


def _up_to_last_reply(conversation: Conversation) -> Conversation:
    """Without the messages after the last reply: no target sees them."""
    messages = conversation.messages
    while messages and messages[-1].role != "assistant":
        messages = messages[:-1]
    if not messages:
        raise DataError("no assistant turn")
    return Conversation(messages, conversation.source, conversation.num_prompt)


def _index_at(offsets: list[tuple[int, int]], start: int) -> int:
    """Index of the first token that starts at character `start` or later."""
    return bisect_left(offsets, start, key=lambda offset: offset[0])


def _cuts_a_token(offsets: list[tuple[int, int]], start: int) -> bool:
    """Whether character `start` is inside of a token."""
    before = _index_at(offsets, start) - 1
    return before >= 0 and start < offsets[before][1]
