"""One example, or one packed row, token by token: what `ince data inspect` shows of it.

`close_up` says where each turn begins, what of it is learnt and where it stops. `packed_close_up`
takes its facts from the collated tensors: it shows what the model is given, not what was meant.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ince.data.collation import collate
from ince.data.config import LossOn
from ince.data.conversation import Completion, Conversation, Item
from ince.data.example import IGNORED, Example
from ince.data.packing import Row
from ince.data.template import Encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["CloseUp", "PackedCloseUp", "PackedPart", "TurnFacts", "close_up", "packed_close_up"]

# A letter takes four bytes at most, and each may be a token.
_MAX_TOKENS_OF_A_LETTER = 4


@dataclass(frozen=True)
class TurnFacts:
    """A turn in an example: tokens `first` to `last` (exclusive), its header among them.

    Attributes:
        role: who speaks; ``template`` for what the chat template adds by itself.
        first, last: places in the example.
        num_learnt: of its tokens.
        stop: place of the stop token that is learnt, or None.
        stop_text: of that token.
        is_cut: whether truncation took its end away.
    """

    role: str
    first: int
    last: int
    num_learnt: int
    stop: int | None
    stop_text: str | None
    is_cut: bool


@dataclass(frozen=True)
class CloseUp:
    """An example with the text of each token, and its turns."""

    example: Example
    tokens: tuple[str, ...]
    turns: tuple[TurnFacts, ...]

    def to_dict(self) -> dict[str, object]:
        """The facts as a JSON-ready object."""
        return {
            "source": self.example.source,
            "tokens": list(self.tokens),
            "input_ids": list(self.example.input_ids),
            "learnt": list(self.example.targets),
            "stops": list(self.example.stops),
            "num_truncated": self.example.num_truncated,
            "turns": [vars(turn) for turn in self.turns],
        }


@dataclass(frozen=True)
class PackedPart:
    """Tokens of a packed row that belong together: of one example, or shared by several.

    Attributes:
        sources: the examples whose tokens these are.
        first, last: places in the row, `last` exclusive.
        first_position: position of the first one, as the model counts.
        tokens: text of each.
        learnt: whether each carries loss.
        stops: those of the places (in the part) where a turn stops.
    """

    sources: tuple[str, ...]
    first: int
    last: int
    first_position: int
    tokens: tuple[str, ...]
    learnt: tuple[bool, ...]
    stops: tuple[int, ...]


@dataclass(frozen=True)
class PackedCloseUp:
    """A packed row: which of how many, its tokens, and the room it has."""

    number: int
    num_rows: int
    num_tokens: int
    max_length: int
    parts: tuple[PackedPart, ...]

    def to_dict(self) -> dict[str, object]:
        """The facts as a JSON-ready object."""
        return {**vars(self), "parts": [vars(part) for part in self.parts]}


def token_texts(ids: tuple[int, ...], tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
    """Text of each token, in its company; a letter of several tokens stands at its last one."""

    def decode(first: int, last: int) -> str:
        return str(
            tokenizer.decode(
                list(ids[first:last]),
                skip_special_tokens=False,
                clean_up_tokenization_spaces=False,
            )
        )

    texts: list[str] = []
    window = done = 0
    for end in range(1, len(ids) + 1):
        text = decode(window, end)
        is_part = text.endswith("\ufffd") and end - done < _MAX_TOKENS_OF_A_LETTER
        if is_part and end < len(ids):
            texts.append("")
            continue
        texts.append(text[len(decode(window, done)) :])
        window, done = done, end
    return tuple(texts)


def close_up(example: Example, part: Item, encoder: Encoder, loss_on: LossOn) -> CloseUp:
    """An example in tokens, by turns.

    Args:
        example: as `fit` made it.
        part: what it was made of, from `Fitted.parts`.
        encoder: that made it.
        loss_on: which tokens are learnt.
    """
    tokens = token_texts(example.input_ids, encoder.tokenizer)
    roles, starts = _turn_starts(example, part, encoder, loss_on)
    turns: list[TurnFacts] = []
    for role, first, end in zip(roles, starts, [*starts[1:], None], strict=True):
        last = example.num_tokens if end is None else min(end, example.num_tokens)
        first = min(first, last)
        stop = next((place for place in example.stops if first <= place < last), None)
        num_learnt = sum(example.targets[first:last])
        cut_short = end is None and stop is None and example.num_truncated > 0
        turns.append(
            TurnFacts(
                role,
                first,
                last,
                num_learnt,
                stop,
                None if stop is None else tokens[stop],
                cut_short or (end is not None and end > example.num_tokens),
            )
        )
    return CloseUp(example, tokens, tuple(turns))


def _turn_starts(
    example: Example, part: Item, encoder: Encoder, loss_on: LossOn
) -> tuple[list[str], list[int]]:
    if isinstance(part, Conversation):
        starts = encoder.message_starts(part, loss_on=loss_on)
        roles = [message.role for message in part.messages[: len(starts)]]
        return (["template", *roles], [0, *starts]) if starts[0] > 0 else (roles, starts)
    if isinstance(part, Completion) and loss_on != "all":
        return ["prompt", "completion"], [0, example.targets.index(True)]
    return ["text"], [0]


def packed_close_up(
    row: Row,
    encoder: Encoder,
    *,
    pad_id: int,
    number: int,
    num_rows: int,
    max_length: int,
) -> PackedCloseUp:
    """A packed row as the model is given it.

    Args:
        row: of `pack_rows`.
        encoder: that made its examples.
        pad_id: token that fills rows.
        number: of the row, counted from 1.
        num_rows: there are.
        max_length: tokens that a row has room for.
    """
    batch = collate([row], pad_id)
    segments = batch.segment_ids[0].tolist()
    positions = batch.position_ids[0].tolist()
    labels = batch.labels[0].tolist()
    stops = {(index, stop) for index, example in enumerate(row.examples) for stop in example.stops}
    parts: list[PackedPart] = []
    for count, segment in enumerate(row.segments, start=1):
        first = segments.index(count)
        last = first + segments.count(count)
        ids = row.examples[segment.example].input_ids
        texts = token_texts(ids, encoder.tokenizer)
        sources = [
            row.examples[other.example].source
            for place, other in enumerate(row.segments, start=1)
            if not other.shared and bool(batch.sees[0, place, count])
        ]
        parts.append(
            PackedPart(
                tuple(sources),
                first,
                last,
                positions[first],
                texts[segment.first : segment.last],
                tuple(label != IGNORED for label in labels[first:last]),
                tuple(
                    place - segment.first
                    for place in range(segment.first, segment.last)
                    if not segment.shared and (segment.example, place) in stops
                ),
            )
        )
    return PackedCloseUp(number, num_rows, row.num_tokens, max_length, tuple(parts))
