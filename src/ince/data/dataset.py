"""A data file to examples, with an account of every row that did not become one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ince.data.config import DataConfig
from ince.data.conversation import Conversation, Document
from ince.data.example import Example
from ince.data.rows import RowProblem, bad_rows_error, count_reasons
from ince.data.shapes import convert_row, detect_shape
from ince.data.sources import SourceFile, read_source
from ince.data.template import Encoder
from ince.errors import ConfigError, DataError, InputError, Problem, TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Converted",
    "EncodedRows",
    "Split",
    "SplitReport",
    "convert_source",
    "encode_rows",
    "load_split",
]

Progress = Callable[[int, int], None]
"""Called with (rows done, rows in all)."""

_TOO_LONG = "longer than max_length"


@dataclass(frozen=True)
class SplitReport:
    """What became of a data file.

    Attributes:
        path: the file.
        digest: hex SHA-256 of its bytes.
        shape: form of its rows.
        num_rows: rows of the file, good and bad.
        num_examples: those that are trained on.
        dropped: rows that are not, by reason; none unless the config allows it.
        problems: the same rows one by one.
        num_tokens: of all examples.
        num_targets: tokens that carry loss.
        num_truncated: examples that were cut.
    """

    path: Path
    digest: str
    shape: str
    num_rows: int
    num_examples: int
    dropped: dict[str, int]
    problems: tuple[RowProblem, ...]
    num_tokens: int
    num_targets: int
    num_truncated: int

    @property
    def num_dropped(self) -> int:
        """Rows of the file that are not trained on."""
        return len(self.problems)

    def to_dict(self) -> dict[str, object]:
        """The split's section of the run record."""
        return {
            "path": str(self.path),
            "digest": self.digest,
            "shape": self.shape,
            "num_rows": self.num_rows,
            "num_examples": self.num_examples,
            "num_dropped": self.num_dropped,
            "dropped": self.dropped,
            "num_tokens": self.num_tokens,
            "num_targets": self.num_targets,
            "num_truncated": self.num_truncated,
        }


@dataclass(frozen=True)
class Split:
    """Examples of one data file, in the order of its rows, and the account of them."""

    examples: tuple[Example, ...]
    report: SplitReport


@dataclass(frozen=True)
class EncodedRows:
    """What a tokenizer makes of converted rows.

    Attributes:
        examples: (row number, example), in the order of the rows.
        too_long: rows that ``truncation: drop`` leaves out.
        unusable: rows that cannot be encoded.
        template_errors: those of the latter that the chat template is to blame for.
    """

    examples: tuple[tuple[int, Example], ...]
    too_long: tuple[RowProblem, ...]
    unusable: tuple[RowProblem, ...]
    template_errors: tuple[TemplateError, ...]


@dataclass(frozen=True)
class Converted:
    """The rows of a source as conversations or documents, each with its row's number.

    Attributes:
        shape: form of the rows, found or given.
        items: in the order of the rows.
        problems: rows that could not be read or do not have the form.
    """

    shape: str
    items: tuple[tuple[int, Conversation | Document], ...]
    problems: tuple[RowProblem, ...]


def convert_source(source: SourceFile, shape: str = "auto") -> Converted:
    """Turn the rows of a source into conversations or documents.

    Raises:
        DataError: `shape` is ``auto`` and the rows have no form that is known.
    """
    problems = list(source.problems)
    if shape == "auto":
        if not source.rows:
            raise _bad_rows(source, problems)
        try:
            shape = detect_shape(source.rows)
        except DataError as error:
            raise DataError(
                error.what,
                where=source.path,
                got=error.got,
                expected=error.expected,
                do=error.do,
            ) from error
    items: list[tuple[int, Conversation | Document]] = []
    for row in source.rows:
        try:
            items.append((row.number, convert_row(row, shape, source.place(row.number))))
        except DataError as error:
            problems.append(RowProblem.from_error(row.number, error))
    return Converted(shape, tuple(items), tuple(problems))


def encode_rows(
    converted: Converted,
    config: DataConfig,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    progress: Progress | None = None,
) -> EncodedRows:
    """Encode converted rows; those that cannot be are listed, not raised.

    Raises:
        TemplateError: the model has no chat template, and the rows need one.
    """
    encoder = Encoder(tokenizer)
    if converted.shape != "text":
        _ = encoder.template  # A model without one is an error of its own, not of each row.
    examples: list[tuple[int, Example]] = []
    too_long: list[RowProblem] = []
    unusable: list[RowProblem] = []
    template_errors: list[TemplateError] = []
    for done, (number, item) in enumerate(converted.items, start=1):
        if isinstance(item, Conversation):
            item = item.with_system(config.system)
        try:
            encoded = encoder.encode(item, loss_on=config.loss_on)
            if config.truncation == "drop" and encoded.num_tokens > config.max_length:
                detail = f"{encoded.num_tokens} tokens"
                too_long.append(RowProblem(number, _TOO_LONG, detail))
            else:
                examples.append((number, encoded.truncate(config.max_length)))
        except (DataError, TemplateError) as error:
            unusable.append(RowProblem.from_error(number, error))
            if isinstance(error, TemplateError):
                template_errors.append(error)
        if progress is not None:
            progress(done, len(converted.items))
    return EncodedRows(tuple(examples), tuple(too_long), tuple(unusable), tuple(template_errors))


def load_split(
    path: str | Path,
    config: DataConfig,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    progress: Progress | None = None,
) -> Split:
    """Read a data file and encode its rows with the model's chat template.

    Args:
        path: the file, such as ``config.train``.
        config: form, lengths, and what is learnt.
        tokenizer: of the model.
        progress: told how far it is.

    Raises:
        DataError: no such file, no example in it, or rows that cannot be used (all of them
            named) while ``config.on_bad_row`` is ``error``.
        TemplateError: the model has no chat template, or is at fault in every bad row.
        ConfigError: an option that does not apply to the rows' form.
    """
    source = read_source(path)
    converted = convert_source(source, config.format)
    _check_options(config, converted.shape)
    rows = encode_rows(converted, config, tokenizer, progress=progress)
    examples = tuple(example for _, example in rows.examples)
    bad = [*converted.problems, *rows.unusable]
    if bad and (config.on_bad_row == "error" or not (examples or rows.too_long)):
        raise _bad_rows(source, bad, rows.template_errors)
    if not examples:
        raise DataError(
            "no example is left: all are longer than max_length",
            where=source.path,
            got=f"{len(rows.too_long)} rows, the shortest of {_shortest(rows.too_long)}",
            expected=f"at most {config.max_length} tokens",
            do="raise max_length, or cut long examples with truncation: right",
        )
    problems = sorted([*bad, *rows.too_long], key=lambda problem: problem.number)
    report = SplitReport(
        path=source.path,
        digest=source.digest,
        shape=converted.shape,
        num_rows=source.num_rows,
        num_examples=len(examples),
        dropped=count_reasons(problems),
        problems=tuple(problems),
        num_tokens=sum(example.num_tokens for example in examples),
        num_targets=sum(example.num_targets for example in examples),
        num_truncated=sum(example.num_truncated > 0 for example in examples),
    )
    return Split(examples, report)


def _shortest(too_long: Sequence[RowProblem]) -> str:
    return min((p.detail or "" for p in too_long), key=lambda text: int(text.split()[0]))


def _check_options(config: DataConfig, shape: str) -> None:
    if shape != "text":
        return
    problems: list[Problem] = []
    if config.system is not None:
        problems.append(Problem("data.system", "plain text has no system message", "remove it"))
    if config.loss_on == "last":
        problems.append(Problem("data.loss_on", "plain text has no last turn", "use all"))
    if problems:
        raise ConfigError("options that do not apply to plain text", problems=problems)


def _bad_rows(
    source: SourceFile, bad: Sequence[RowProblem], template_errors: Sequence[TemplateError] = ()
) -> InputError:
    # When nothing but the template is at fault, that is what the error is about.
    template_alone = bool(bad) and len(template_errors) == len(bad)
    advice = next((error.do for error in template_errors if error.do), None)
    if not template_alone and len(bad) == source.num_rows:
        advice = "mend the file, or say what form its rows have with format"
    elif not template_alone:
        advice = None
    return bad_rows_error(
        source.path,
        bad,
        num_rows=source.num_rows,
        unit=source.unit,
        error_class=TemplateError if template_alone else DataError,
        do=advice,
    )
