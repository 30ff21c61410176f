"""A data file to examples, with an account of every row that did not become one."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ince.data.config import DataConfig, Truncation
from ince.data.conversation import Conversation, Item
from ince.data.example import Example
from ince.data.rows import RowProblem, bad_rows_error, count_reasons
from ince.data.shapes import convert_row, detect_shape
from ince.data.sources import SourceFile, read_source
from ince.data.template import Encoder
from ince.data.truncation import Fitted, Lost, fit
from ince.errors import ConfigError, DataError, InputError, Problem, TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Converted",
    "EncodedRows",
    "Progress",
    "Split",
    "SplitReport",
    "convert_source",
    "encode_rows",
    "fit_row",
    "load_split",
]

Progress = Callable[[int, int], None]
"""Called with (rows done, rows in all)."""

_TOO_LONG = "longer than max_length"
_WITHOUT_TURNS = {"text": "plain text", "plain-completion": "a plain completion"}
_WITH_COMPLETIONS = ("prompt-completion", "plain-completion")


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
        num_split: rows that several examples were made of.
        truncation: what was done with rows longer than `max_length`.
        max_length: most tokens of an example.
        lost: tokens that truncation took away, of rows that were left out as well.
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
    num_split: int
    truncation: Truncation
    max_length: int
    lost: Lost

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
            "num_split": self.num_split,
            "truncation": self.truncation,
            "num_lost_tokens": self.lost.num_tokens,
            "num_lost_targets": self.lost.num_targets,
            "num_lost_stops": self.lost.num_stops,
        }

    def summary(self) -> str:
        """What there is to train on, and what truncation cost, in one line."""
        kept = f"{self.num_examples:,} {self.shape} examples, {self.num_tokens:,} tokens"
        parts = [f"{kept}, {self.num_targets:,} of them learnt"]
        if self.num_dropped:
            parts.append(f"{self.num_dropped:,} rows left out")
        if self.num_split:
            parts.append(f"{self.num_split:,} rows split")
        if self.num_truncated:
            side = "at their beginning" if self.truncation == "left" else "at their end"
            parts.append(f"{self.num_truncated:,} cut {side} to {self.max_length:,} tokens")
        if self.lost.num_tokens:
            parts.append(
                f"truncation: {self.truncation} lost {self.lost.num_tokens:,} tokens, "
                f"{self.lost.num_targets:,} to learn, {self.lost.num_stops:,} stop tokens"
            )
        return "; ".join(parts)


@dataclass(frozen=True)
class Split:
    """Examples of one data file, in the order of its rows, and the account of them."""

    examples: tuple[Example, ...]
    report: SplitReport


@dataclass(frozen=True)
class EncodedRows:
    """What a tokenizer makes of converted rows.

    Attributes:
        examples: (row number, example), in the order of the rows; a row that was split has
            several.
        too_long: rows that ``truncation: drop`` leaves out.
        unusable: rows that cannot be encoded.
        template_errors: those of the latter that the chat template is to blame for.
        lengths: (row number, tokens before truncation) of the rows that became examples.
        lost: what truncation took away.
    """

    examples: tuple[tuple[int, Example], ...]
    too_long: tuple[RowProblem, ...]
    unusable: tuple[RowProblem, ...]
    template_errors: tuple[TemplateError, ...]
    lengths: tuple[tuple[int, int], ...]
    lost: Lost

    @property
    def num_split(self) -> int:
        """Rows that several examples were made of."""
        counts = Counter(number for number, _ in self.examples)
        return sum(count > 1 for count in counts.values())


@dataclass(frozen=True)
class Converted:
    """The rows of a source as conversations or documents, each with its row's number.

    Attributes:
        shape: form of the rows, found or given.
        items: in the order of the rows.
        problems: rows that could not be read or do not have the form.
    """

    shape: str
    items: tuple[tuple[int, Item], ...]
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
    items: list[tuple[int, Item]] = []
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
    if converted.shape not in _WITHOUT_TURNS:
        _ = encoder.template  # A model without one is an error of its own, not of each row.
    examples: list[tuple[int, Example]] = []
    too_long: list[RowProblem] = []
    unusable: list[RowProblem] = []
    template_errors: list[TemplateError] = []
    lengths: list[tuple[int, int]] = []
    lost = Lost()
    for done, (number, item) in enumerate(converted.items, start=1):
        try:
            fitted = fit_row(item, encoder, config)
        except (DataError, TemplateError) as error:
            unusable.append(RowProblem.from_error(number, error))
            if isinstance(error, TemplateError):
                template_errors.append(error)
        else:
            lost += fitted.lost
            if fitted.examples:
                examples += [(number, example) for example in fitted.examples]
                lengths.append((number, fitted.num_tokens))
            else:
                too_long.append(RowProblem(number, _TOO_LONG, f"{fitted.num_tokens} tokens"))
        if progress is not None:
            progress(done, len(converted.items))
    return EncodedRows(
        tuple(examples),
        tuple(too_long),
        tuple(unusable),
        tuple(template_errors),
        tuple(lengths),
        lost,
    )


def fit_row(item: Item, encoder: Encoder, config: DataConfig) -> Fitted:
    """One converted row as the examples that `config` asks for.

    Raises:
        DataError, TemplateError: as of `fit`.
    """
    if isinstance(item, Conversation):
        item = item.with_system(config.system)
    return fit(
        item,
        encoder,
        max_length=config.max_length,
        loss_on=config.loss_on,
        truncation=config.truncation,
    )


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
        num_split=rows.num_split,
        truncation=config.truncation,
        max_length=config.max_length,
        lost=rows.lost,
    )
    return Split(examples, report)


def _shortest(too_long: Sequence[RowProblem]) -> str:
    return min((p.detail or "" for p in too_long), key=lambda text: int(text.split()[0]))


def _check_options(config: DataConfig, shape: str) -> None:
    problems: list[Problem] = []
    if shape in _WITHOUT_TURNS and config.system is not None:
        kind = _WITHOUT_TURNS[shape]
        problems.append(Problem("data.system", f"{kind} has no system message", "remove it"))
    if shape == "text" and config.loss_on in ("last", "completion"):
        wanted = {"last": "last turn", "completion": "completion"}[config.loss_on]
        problems.append(Problem("data.loss_on", f"plain text has no {wanted}", "use all"))
    elif config.loss_on == "completion" and shape not in _WITH_COMPLETIONS:
        problems.append(
            Problem("data.loss_on", f"{shape} rows have no completion", "use assistant or last")
        )
    if problems:
        raise ConfigError(f"options that do not apply to {shape} rows", problems=problems)


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
