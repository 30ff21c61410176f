"""`Options`: a frozen set of named options whose mistakes are all reported in one error.

pydantic checks one value at a time and raises its own error. Here unknown names, options that
are not built, values that cannot be, values inside of parts and values that contradict each
other become one `ConfigError`. This module knows no option by name.
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar, NamedTuple, Self, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from ince.errors import ConfigError, Problem, did_you_mean

__all__ = ["IN_FILE", "Clash", "Options", "is_off", "shown"]

# Validation context of values that come from a file, where training is over.
IN_FILE = object()

_MAX_SHOWN_CHARACTERS = 80


class Clash(NamedTuple):
    """Options that are well each, and not together. The problem is shown at the first."""

    options: tuple[str, ...]
    what: str
    suggestion: str | None = None
    training: bool = False
    """Concerns training alone: no mistake in a file, which holds what came out of it."""


class Options(BaseModel):
    """Base of every config and of the parts of one.

    Raises:
        ConfigError: on construction; every mistake is in `problems`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    _title: ClassVar[str]
    # Options of PEFT that are known and not built, each with the value that leaves it unused.
    _not_built: ClassVar[Mapping[str, object]] = {}
    # Options that are options themselves.
    _parts: ClassVar[Mapping[str, type["Options"]]] = {}

    @classmethod
    def _prepare(cls, values: dict[str, object]) -> Iterator[Problem]:
        """Complete what was given, and take out of it what is no field."""
        del values
        yield from ()

    def _clashes(self) -> Iterator[Clash]:
        """Contradictions among values that are well each."""
        yield from ()

    @model_validator(mode="wrap")
    @classmethod
    def _report_all_mistakes(
        cls, data: object, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo
    ) -> Self:
        if isinstance(data, cls):
            return handler(data)
        what = f"the {cls._title} config has mistakes"
        if not isinstance(data, Mapping):
            got = Problem("", f"expected options by name, got {shown(data)}")
            raise ConfigError(what, problems=[got])
        in_file = info.context is IN_FILE
        values = dict(cast("Mapping[str, object]", data))
        problems = [
            *cls._prepare(values),
            *cls._take_not_built(values),
            *cls._take_unknown(values, in_file=in_file),
        ]
        of_parts = list(cls._build_parts(values, info.context))
        problems += of_parts
        bad = {problem.key.partition(".")[0] for problem in of_parts}
        config, of_values = cls._build(values, handler)
        problems += of_values
        bad |= {problem.key.partition(".")[0] for problem in of_values}
        for clash in config._clashes() if config is not None else ():
            if not bad.intersection(clash.options) and not (in_file and clash.training):
                problems.append(Problem(clash.options[0], clash.what, clash.suggestion))
        if config is None or problems:
            raise ConfigError(what, problems=problems)
        return config

    @classmethod
    def _take_not_built(cls, values: dict[str, object]) -> Iterator[Problem]:
        for name, neutral in cls._not_built.items():
            if name in values:
                value = values.pop(name)
                if not is_off(value) and not (type(value) is type(neutral) and value == neutral):
                    yield Problem(
                        name, f"{shown(value)} is not supported", f"leave it at {neutral!r}"
                    )

    @classmethod
    def _take_unknown(cls, values: dict[str, object], *, in_file: bool) -> Iterator[Problem]:
        known = [*cls.model_fields, *cls._not_built]
        for name in [name for name in values if name not in cls.model_fields]:
            if not in_file or not is_off(values[name]):
                text = name if isinstance(name, str) else shown(name)
                yield Problem(text, "no such option", did_you_mean(text, known))
            del values[name]

    @classmethod
    def _build_parts(cls, values: dict[str, object], context: object) -> Iterator[Problem]:
        for name, kind in cls._parts.items():
            value = values.get(name)
            if isinstance(value, Mapping):
                try:
                    values[name] = kind.model_validate(value, context=context)
                except ConfigError as error:
                    for inner in error.problems:
                        key = f"{name}.{inner.key}".rstrip(".")
                        yield Problem(key, inner.what, inner.suggestion)
                    del values[name]
            elif value is not None and not isinstance(value, kind):
                expected = f"expected {kind.__name__} or its options by name"
                yield Problem(name, f"{expected}, got {shown(value)}")
                del values[name]

    @classmethod
    def _build(
        cls, values: dict[str, object], handler: ModelWrapValidatorHandler[Self]
    ) -> tuple[Self | None, list[Problem]]:
        """The config, of its good values alone where some are bad, and what is bad."""
        try:
            return handler(values), []
        except ValidationError as error:
            problems = list(_problems(error, values))
        bad = {problem.key.partition(".")[0] for problem in problems}
        try:
            good = {name: value for name, value in values.items() if name not in bad}
            return handler(good), problems
        except ValidationError:  # a required one is among the bad
            return None, problems


def is_off(value: object) -> bool:
    """Whether an option with this value asks for nothing: null, false, zero or empty."""
    if isinstance(value, bool | int | float | Mapping | list | tuple | set | frozenset):
        return not value
    return value is None


def shown(value: object) -> str:
    """`repr(value)` for a message, cut when long."""
    try:
        text = repr(value)
    except Exception:  # of someone else's object, or of an integer of too many digits
        return f"a value of type {type(value).__name__}"
    if len(text) <= _MAX_SHOWN_CHARACTERS:
        return text
    return f"{text[:_MAX_SHOWN_CHARACTERS]}…"


def _problems(error: ValidationError, values: Mapping[str, object]) -> Iterator[Problem]:
    """One problem per key: a union reports each of its branches, a person wants the key."""
    seen: set[str] = set()
    for detail in error.errors(include_url=False):
        location = [str(part) for part in detail["loc"]]
        # In a table the key says which entry is meant.
        in_table = isinstance(values.get(location[0]), Mapping)
        key = ".".join(location[: 2 if in_table else 1])
        if key in seen:
            continue
        seen.add(key)
        if detail["type"] == "missing":
            yield Problem(key, "is required")
            continue
        what = detail["msg"].removeprefix("Value error, ")
        yield Problem(key, f"{what[:1].lower()}{what[1:]}, got {shown(detail['input'])}")
