"""What is in a data file, before anything is trained on it.

`inspect_file` gathers facts as plain numbers (for ``--json``); `ince.data.view` draws them for
a terminal. With no tokenizer the file's form is examined, not its tokens.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ince.data.close_up import CloseUp, close_up
from ince.data.config import DataConfig
from ince.data.conversation import Conversation
from ince.data.dataset import (
    Converted,
    EncodedRows,
    Progress,
    convert_source,
    encode_rows,
    fit_row,
)
from ince.data.packing import PackingFacts, pack_rows
from ince.data.rows import RowProblem, count_reasons
from ince.data.sources import SourceFile, read_source
from ince.data.template import Encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Bin", "Inspection", "LongRow", "TokenFacts", "inspect_file"]

_NUM_BINS = 10
_NUM_LONGEST = 5


@dataclass(frozen=True)
class Bin:
    """How many examples have from `low` to `high` tokens, both included."""

    low: int
    high: int
    count: int


@dataclass(frozen=True)
class LongRow:
    """A row and how many tokens it has before truncation."""

    number: int
    num_tokens: int


@dataclass(frozen=True)
class TokenFacts:
    """What a tokenizer makes of the rows; lengths are those before truncation.

    Attributes:
        num_examples: rows that can be trained on.
        num_tokens: of all examples, after truncation.
        num_targets: tokens that carry loss.
        num_truncated: examples that were cut to `max_length`.
        max_length: most tokens of an example.
        shortest, median, mean, longest: tokens of an example.
        histogram: lengths in bins of equal width.
        longest_rows: the longest first.
        num_packed_rows: rows of `max_length` tokens that packing makes of the examples.
        packed_share: of those rows' tokens, how many are not padding.
        shared_share: of the examples' tokens, how many shared beginnings save.
        truncation: what is done with rows longer than `max_length`.
        num_split: rows that several examples were made of.
        num_lost_tokens, num_lost_targets, num_lost_stops: what truncation took away.
    """

    num_examples: int
    num_tokens: int
    num_targets: int
    num_truncated: int
    max_length: int
    shortest: int
    median: int
    mean: float
    longest: int
    histogram: tuple[Bin, ...]
    longest_rows: tuple[LongRow, ...]
    num_packed_rows: int
    packed_share: float
    shared_share: float
    truncation: str
    num_split: int
    num_lost_tokens: int
    num_lost_targets: int
    num_lost_stops: int


@dataclass(frozen=True)
class Inspection:
    """What is in a data file.

    Attributes:
        path, kind, encoding, delimiter, num_bytes, digest, unit: of the file, see `SourceFile`.
        shape: form of the rows.
        num_rows: good and bad.
        columns: in how many rows each column is filled.
        roles: how many messages each role has.
        dropped: rows that cannot be trained on, by reason.
        problems: the same rows one by one.
        tokens: None without a tokenizer, or when no row can be trained on.
        example: the first one that can be trained on, token by token.
    """

    path: Path
    kind: str
    encoding: str | None
    delimiter: str | None
    num_bytes: int
    digest: str
    unit: str
    shape: str
    num_rows: int
    columns: dict[str, int]
    roles: dict[str, int]
    dropped: dict[str, int]
    problems: tuple[RowProblem, ...]
    tokens: TokenFacts | None = None
    example: CloseUp | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, object]:
        """The facts as a JSON-ready object; the example's tokens are left out."""
        facts = {name: getattr(self, name) for name in self.__dataclass_fields__}
        del facts["example"]
        facts["path"] = str(self.path)
        facts["num_dropped"] = len(self.problems)
        facts["problems"] = [asdict(problem) for problem in self.problems]
        facts["tokens"] = asdict(self.tokens) if self.tokens else None
        return facts


def inspect_file(
    path: str | Path,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    config: DataConfig | None = None,
    *,
    progress: Progress | None = None,
) -> Inspection:
    """Examine a data file; rows that cannot be used are counted, not raised.

    Args:
        path: the file.
        tokenizer: of the model; None examines the form alone.
        config: form, lengths and loss as for training; its defaults when None.
        progress: told (rows encoded, rows in all).

    Raises:
        DataError: no such file, an empty one, or rows of no known form.
        TemplateError: the model has no chat template.
    """
    config = config or DataConfig(train=str(path))
    source = read_source(path)
    converted = convert_source(source, config.format)
    problems = list(converted.problems)
    tokens, example = None, None
    if tokenizer is not None:
        rows = encode_rows(converted, config, tokenizer, progress=progress)
        problems += [*rows.too_long, *rows.unusable]
        tokens = _token_facts(rows, config)
        example = _first_example(rows, converted, config, tokenizer)
    problems.sort(key=lambda problem: problem.number)
    return Inspection(
        path=source.path,
        kind=source.kind,
        encoding=source.encoding,
        delimiter=source.delimiter,
        num_bytes=source.num_bytes,
        digest=source.digest,
        unit=source.unit,
        shape=converted.shape,
        num_rows=source.num_rows,
        columns=_filled_columns(source),
        roles=_roles(converted),
        dropped=count_reasons(problems),
        problems=tuple(problems),
        tokens=tokens,
        example=example,
    )


def _first_example(
    rows: EncodedRows,
    converted: Converted,
    config: DataConfig,
    tokenizer: "PreTrainedTokenizerBase",
) -> CloseUp | None:
    if not rows.examples:
        return None
    number = rows.examples[0][0]
    encoder = Encoder(tokenizer)
    item = next(item for row, item in converted.items if row == number)
    fitted = fit_row(item, encoder, config)
    return close_up(fitted.examples[0], fitted.parts[0], encoder, config.loss_on)


def _filled_columns(source: SourceFile) -> dict[str, int]:
    filled = Counter(
        name for row in source.rows for name, value in row.value.items() if value not in (None, "")
    )
    return dict(filled.most_common())


def _roles(converted: Converted) -> dict[str, int]:
    roles = Counter(
        message.role
        for _, item in converted.items
        if isinstance(item, Conversation)
        for message in item.messages
    )
    return dict(roles.most_common())


def _token_facts(rows: EncodedRows, config: DataConfig) -> TokenFacts | None:
    if not rows.examples:
        return None
    examples = [example for _, example in rows.examples]
    whole = [LongRow(number, num_tokens) for number, num_tokens in rows.lengths]
    lengths = sorted(row.num_tokens for row in whole)
    packed_rows = pack_rows(
        examples, range(len(examples)), config.max_length, share=config.share_beginnings
    )
    packed = PackingFacts.of(packed_rows, config.max_length)
    return TokenFacts(
        num_examples=len(examples),
        num_tokens=sum(example.num_tokens for example in examples),
        num_targets=sum(example.num_targets for example in examples),
        num_truncated=sum(example.num_truncated > 0 for example in examples),
        max_length=config.max_length,
        shortest=lengths[0],
        median=lengths[len(lengths) // 2],
        mean=round(sum(lengths) / len(lengths), 1),
        longest=lengths[-1],
        histogram=_histogram(lengths),
        longest_rows=tuple(sorted(whole, key=lambda r: (-r.num_tokens, r.number))[:_NUM_LONGEST]),
        num_packed_rows=packed.num_rows,
        packed_share=round(packed.share_full, 4),
        shared_share=round(packed.share_saved, 4),
        truncation=config.truncation,
        num_split=rows.num_split,
        num_lost_tokens=rows.lost.num_tokens,
        num_lost_targets=rows.lost.num_targets,
        num_lost_stops=rows.lost.num_stops,
    )


def _histogram(lengths: Sequence[int]) -> tuple[Bin, ...]:
    low, high = min(lengths), max(lengths)
    width = max(1, -(-(high - low + 1) // _NUM_BINS))
    counts = Counter((length - low) // width for length in lengths)
    return tuple(
        Bin(low + i * width, low + (i + 1) * width - 1, counts[i]) for i in range(max(counts) + 1)
    )
