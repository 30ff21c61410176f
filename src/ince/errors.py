"""Every error that ince raises on purpose, as one tree.

    InceError                  exit 1  something failed
    ├── InputError             exit 2  what the user gave cannot be used
    │   ├── ConfigError                a recipe or config: all problems together
    │   ├── ModelReferenceError        no such model, or not one we can read
    │   ├── DataError                  a data file, or rows in it
    │   ├── TemplateError              a chat template cannot render or mark a conversation
    │   ├── QuantError                 a tensor cannot be quantized, or packed parts disagree
    │   ├── AdapterError               an adapter does not fit its base, or is malformed
    │   └── OutputError                the output folder holds something else
    ├── CorruptFileError       exit 1  bytes on disk are not what was written
    ├── DiskFullError          exit 1  no space left; nothing half-written stays behind
    ├── TrainingError          exit 1  a run cannot go on
    ├── OutOfMemoryError       exit 1  not even one row fits into memory
    ├── QueueFullError         exit 1  a server has as much to do as it takes on
    ├── DrainingError          exit 1  a server is stopping, and takes no new requests
    ├── ProofError             exit 3  a proof or check did not hold
    └── InterruptedRunError    exit 130  stopped by Ctrl-C after saving

A message says what happened, where, what was got, what was expected and what to do.
"""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = [
    "AdapterError",
    "ConfigError",
    "CorruptFileError",
    "DataError",
    "DiskFullError",
    "DrainingError",
    "InceError",
    "InputError",
    "InterruptedRunError",
    "ModelReferenceError",
    "OutOfMemoryError",
    "OutputError",
    "Problem",
    "ProofError",
    "QuantError",
    "QueueFullError",
    "TemplateError",
    "TrainingError",
    "did_you_mean",
]

# Long values are cut: an error line is read by a person, and may land in a log.
_MAX_SHOWN_CHARACTERS = 200


def _printable(text: str) -> str:
    """`text` with control characters, lone surrogates and the like as escapes; newlines stay.

    Names and values come from other people's files: none may move the cursor of a terminal,
    or fail to encode where the error is printed.
    """
    return "".join(
        character
        if character == "\n" or character.isprintable()
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    text = _printable(" ".join(text.split())) or repr(text)
    if len(text) <= _MAX_SHOWN_CHARACTERS:
        return text
    return text[:_MAX_SHOWN_CHARACTERS] + f"… ({len(text)} characters)"


class InceError(Exception):
    """Root of the tree: a failure that ince understands.

    Args:
        what: one sentence, what happened.
        where: the file, line, key or tensor concerned.
        got: the offending value; cut when long.
        expected: what would have been right.
        do: what the user can do about it.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        got: object = None,
        expected: object = None,
        do: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = None if where is None else _shown(str(where))
        self.got = None if got is None else _shown(got)
        self.expected = None if expected is None else _shown(expected)
        self.do = do

    def details(self) -> list[tuple[str, str]]:
        """The parts that are known, as (label, text), in reading order."""
        parts = (
            ("where", self.where),
            ("got", self.got),
            ("expected", self.expected),
            ("do", self.do),
        )
        return [(label, text) for label, text in parts if text is not None]

    def __str__(self) -> str:
        lines = [_printable(self.what)]
        lines += [f"  {label + ':':<10}{text}" for label, text in self.details()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, object]:
        """The error as a JSON-ready object, for ``--json``."""
        fields: dict[str, object] = {"type": type(self).__name__, "what": self.what}
        fields.update(self.details())
        fields["exit_code"] = self.exit_code
        return fields


class InputError(InceError):
    """What the user gave cannot be used."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One mistake in a config: the dotted key, what is wrong, and a likely repair."""

    key: str
    what: str
    suggestion: str | None = None

    def __str__(self) -> str:
        line = f"{self.key}: {self.what}" if self.key else self.what
        return _printable(f"{line} ({self.suggestion})" if self.suggestion else line)


class ConfigError(InputError):
    """A recipe or config has mistakes; all of them are in `problems`."""

    def __init__(
        self,
        what: str,
        *,
        problems: Sequence[Problem] = (),
        where: object = None,
        got: object = None,
        expected: object = None,
        do: str | None = None,
    ) -> None:
        super().__init__(what, where=where, got=got, expected=expected, do=do)
        self.problems = tuple(problems)

    def __str__(self) -> str:
        lines = [super().__str__()]
        lines += [f"  - {problem}" for problem in self.problems]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, object]:
        """The error as a JSON-ready object, each problem in it."""
        fields = super().to_dict()
        fields["problems"] = [
            {"key": p.key, "what": p.what, "suggestion": p.suggestion} for p in self.problems
        ]
        return fields


class ModelReferenceError(InputError):
    """No such model, or not one that can be read."""


class DataError(InputError):
    """A data file, or rows in it, cannot be used."""


class TemplateError(InputError):
    """A chat template cannot render a conversation or mark its turns."""


class QuantError(InputError):
    """A tensor cannot be quantized, or packed parts disagree."""


class AdapterError(InputError):
    """An adapter does not fit its base, or is malformed."""


class OutputError(InputError):
    """The output folder holds something that this command must not overwrite."""


class CorruptFileError(InceError):
    """Bytes on disk are not the bytes that were written."""


class DiskFullError(InceError):
    """No space left on the device; temporary files were removed."""


class TrainingError(InceError):
    """A training run cannot go on."""


class OutOfMemoryError(InceError):
    """Not even one row, of an evaluation or of answers, fits into memory."""


class QueueFullError(InceError):
    """A server has as much to do as it takes on; in `retry_after` seconds it may have less."""

    def __init__(
        self,
        what: str,
        *,
        retry_after: float = 1.0,
        where: object = None,
        got: object = None,
        expected: object = None,
        do: str | None = None,
    ) -> None:
        super().__init__(what, where=where, got=got, expected=expected, do=do)
        self.retry_after = retry_after


class DrainingError(InceError):
    """A server is stopping: it finishes what it has, and takes no new requests."""


class ProofError(InceError):
    """A proof or check did not hold."""

    exit_code = 3


class InterruptedRunError(InceError):
    """Stopped by the user after saving what was done."""

    exit_code = 130


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """``did you mean 'x'?`` for the nearest known name, or None when none is near.

    Upper and lower case count as equal.
    """
    by_lower = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(str(name).lower(), list(by_lower), n=1, cutoff=0.6)
    return f"did you mean {by_lower[near[0]]!r}?" if near else None
