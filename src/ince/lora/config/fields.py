"""The kinds of values that the options of an adapter take, each with its check.

A check raises ValueError with what is expected; pydantic carries it to the option. The order
of written files must not depend on hash seeds, so that sets become sorted tuples here.
"""

import json
import re
import warnings
from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Literal, TypeVar, cast

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, StrictFloat, StrictInt

from ince.errors import did_you_mean

__all__ = [
    "ALL_LINEAR",
    "Alpha",
    "AutoMapping",
    "Count",
    "Finite",
    "Layers",
    "LayersPattern",
    "Names",
    "NamesOrPattern",
    "PatternTable",
    "Rank",
    "Replication",
    "Share",
    "Start",
    "Steps",
    "TaskName",
    "Tokens",
    "Weight",
    "plain",
]

ALL_LINEAR = "all-linear"

_STARTS = ("gaussian", "orthogonal", "pissa", "olora", "loftq", "eva", "lora_ga")
_STARTS_NOT_BUILT = ("corda", "mica")
_ITERATED_PISSA = re.compile("pissa_niter_[0-9]{1,4}")

# Ranks and alphas are divided as floats, and scale float32 tensors.
_MAX_RANK = 10**100
_MAX_FLOAT32 = 3.4e38
_MAX_INDEX = 2**63 - 1
# A range is written out as a list: more than layers or tokens of any model.
_MAX_RANGE = 2**24

_Value = TypeVar("_Value")


def _check_pattern(pattern: str, within: str = "{}") -> str:
    """`pattern` must compile where it will be used, which is `within`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            re.compile(within.format(pattern))
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"not a regular expression: {error}") from None
    return pattern


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple | set | frozenset):
        raise ValueError("expected a list of names")
    names = list(cast("list[object]", value))
    if not all(isinstance(name, str) for name in names):
        raise ValueError("expected a list of names")
    if not all(names):
        raise ValueError("an empty name matches no module")
    texts = cast("list[str]", names)
    return tuple(dict.fromkeys(sorted(texts) if isinstance(value, set | frozenset) else texts))


def _names_or_pattern(value: object) -> str | tuple[str, ...]:
    if not isinstance(value, str):
        return _names(value)
    if not value:
        raise ValueError("an empty expression matches no module")
    return ALL_LINEAR if value.lower() == ALL_LINEAR else _check_pattern(value)


def _layers_pattern(value: object) -> str | tuple[str, ...]:
    patterns = value if isinstance(value, str) else _names(value)
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        _check_pattern(pattern, r"(?:^|.*?\.)(?:{})\.(\d+)\.")
    return patterns


def _check_patterns(patterns: dict[str, _Value]) -> dict[str, _Value]:
    for pattern in patterns:
        _check_pattern(pattern, r"(.*\.)?({})$")
    return patterns


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_INDEX


def _indices(value: object, expected: str) -> tuple[int, ...]:
    if not isinstance(value, list | tuple | set | frozenset | range):
        raise ValueError(f"expected {expected}")
    if isinstance(value, range) and value[_MAX_RANGE:]:  # len() fails beyond a word
        raise ValueError(f"expected {expected}, of {_MAX_RANGE} at most")
    indices = list(cast("list[object]", value))
    if not all(_is_index(index) for index in indices):
        raise ValueError(f"expected {expected}, from 0 on")
    numbers = cast("list[int]", indices)
    return tuple(sorted(numbers) if isinstance(value, set | frozenset) else numbers)


def _layers(value: object) -> int | tuple[int, ...]:
    if isinstance(value, int) and _is_index(value):
        return value
    return tuple(dict.fromkeys(_indices(value, "a layer number or a list of them")))


def _tokens(value: object) -> object:
    if isinstance(value, Mapping):
        table = cast("Mapping[object, object]", value)
        if not table or not all(isinstance(name, str) and name for name in table):
            raise ValueError("expected lists of token ids by the names of embeddings")
        return {name: _tokens_of_one(ids) for name, ids in table.items()}
    return _tokens_of_one(value)


def _tokens_of_one(value: object) -> tuple[int, ...]:
    tokens = _indices(value, "a list of token ids")
    if not tokens:
        raise ValueError("names no token")
    if len(set(tokens)) < len(tokens):
        raise ValueError("names a token twice")
    return tokens


def _replication(value: object) -> tuple[tuple[int, ...], ...]:
    expected = "expected a list of [start, end) pairs of layer numbers"
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(expected)
    ranges = tuple(_indices(pair, "pairs") for pair in cast("list[object]", value))
    if not all(len(pair) == 2 and pair[0] < pair[1] for pair in ranges):
        raise ValueError(expected)
    return ranges


def _start(value: object) -> bool | str:
    if isinstance(value, bool):
        return value
    if not isinstance(value, str):
        raise ValueError("expected True, False or the name of a start")
    name = value.lower()
    if name in _STARTS or _ITERATED_PISSA.fullmatch(name):
        return name
    if name in _STARTS_NOT_BUILT:
        raise ValueError(f"{name!r} is not supported; built are {', '.join(_STARTS)}")
    near = did_you_mean(name, _STARTS)
    raise ValueError(near or f"expected True, False or one of {', '.join(_STARTS)}")


def plain(value: object) -> object:
    """`value`, or what a member of an enumeration such as PEFT's `TaskType` stands for."""
    return value.value if isinstance(value, Enum) else value


def _none_is_empty(value: object) -> object:
    return {} if value is None else value


def _check_json(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    try:
        json.dumps(value, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot be written as JSON: {error}") from None
    return value


Count = Annotated[StrictInt, Field(ge=1, le=_MAX_INDEX)]
Steps = Annotated[StrictInt, Field(ge=0, le=_MAX_INDEX)]
Weight = Annotated[StrictInt | StrictFloat, Field(ge=0, lt=_MAX_FLOAT32)]
Rank = Annotated[StrictInt, Field(ge=1, lt=_MAX_RANK)]
Finite = Annotated[StrictInt | StrictFloat, Field(gt=-_MAX_FLOAT32, lt=_MAX_FLOAT32)]
Alpha = Annotated[StrictInt | StrictFloat, Field(gt=0, lt=_MAX_FLOAT32)]
Share = Annotated[StrictInt | StrictFloat, Field(ge=0, lt=1)]
"""A probability that leaves something."""

Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
NamesOrPattern = Annotated[str | tuple[str, ...], BeforeValidator(_names_or_pattern)]
LayersPattern = Annotated[str | tuple[str, ...], BeforeValidator(_layers_pattern)]
Layers = Annotated[int | tuple[int, ...], BeforeValidator(_layers)]
PatternTable = Annotated[
    dict[str, _Value], AfterValidator(_check_patterns), BeforeValidator(_none_is_empty)
]
"""Values by suffix or regular expression."""

Tokens = Annotated[tuple[int, ...] | dict[str, tuple[int, ...]], BeforeValidator(_tokens)]
Replication = Annotated[tuple[tuple[int, int], ...], BeforeValidator(_replication)]
Start = Annotated[bool | str, BeforeValidator(_start)]
AutoMapping = Annotated[dict[str, JsonValue], AfterValidator(_check_json)]
TaskName = Annotated[
    Literal[
        "SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"
    ],
    BeforeValidator(plain),
]
