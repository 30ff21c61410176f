"""The candidates of a sweep: ``lora.r=8,16,64 train.lr=1e-4,2e-4`` as recipes, each with a name.

A key with several values is an axis of the grid, one with a single value holds for all.
Values are cut at commas; one that opens with a bracket, a brace or a quote goes to its end,
so that lists and texts with commas can be values. What a value means is the recipe's to say.
Every mistake of every candidate is found before anything is trained.
"""

import hashlib
import itertools
import json
import math
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ince.errors import ConfigError, Problem
from ince.recipe import Recipe

__all__ = [
    "MAX_CANDIDATES",
    "MAX_WITHOUT_YES",
    "Axis",
    "Candidate",
    "build_candidates",
    "choose_values",
    "parse_axes",
]

MAX_WITHOUT_YES = 200
# Each candidate is a folder, and a row of a table that somebody reads.
MAX_CANDIDATES = 10_000

_CLOSING = {"[": "]", "{": "}"}
_AROUND_VALUES = re.compile(r"[\[\]{}\"'\s]+")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._+-]+")
_MAX_NAME_CHARACTERS = 100

# A key that a sweep must not vary, and why.
_FIXED = {
    "output": ("each candidate has a folder of its own", "choose the sweep's folder with --out"),
    "data.eval": (
        "candidates are compared by their loss on the same held-out rows",
        "give one file for all",
    ),
}
_NOT_TRAINED = ("evaluate", "it changes what is measured afterwards, not how a candidate trains")


@dataclass(frozen=True)
class Axis:
    """A key and its values, as they were written."""

    key: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Candidate:
    """One point of the grid: its folder's name, its values as written, and its recipe."""

    name: str
    values: dict[str, str]
    recipe: Recipe


# ------------------------------------------------------------------------------------- reading


def _end_of_value(text: str, start: int) -> int:
    """Where the value that begins at `start` ends: at a comma, or at the end of the text."""
    position = start
    while position < len(text) and text[position] == " ":
        position += 1
    opening = text[position : position + 1]
    if opening in ('"', "'"):
        position = _end_of_quote(text, position)
    elif opening in _CLOSING:
        position = _end_of_bracket(text, position)
    comma = text.find(",", position)
    return len(text) if comma < 0 else comma


def _end_of_quote(text: str, start: int) -> int:
    quote, position = text[start], start + 1
    while position < len(text):
        if text[position] == "\\" and quote == '"':
            position += 2
            continue
        if text[position] == quote:
            if quote == "'" and text[position + 1 : position + 2] == "'":
                position += 2
                continue
            return position + 1
        position += 1
    raise ValueError("a quote that does not close")


def _end_of_bracket(text: str, start: int) -> int:
    awaited: list[str] = []
    position = start
    while position < len(text):
        character = text[position]
        if character in ('"', "'"):
            position = _end_of_quote(text, position)
            continue
        if character in _CLOSING:
            awaited.append(_CLOSING[character])
        elif character in _CLOSING.values():
            if character != awaited[-1]:
                raise ValueError(f"{character!r} where {awaited[-1]!r} was expected")
            awaited.pop()
            if not awaited:
                return position + 1
        position += 1
    raise ValueError("a bracket that does not close")


def _values(text: str) -> list[str]:
    """The values of one assignment.

    Raises:
        ValueError: quotes or brackets that do not close.
    """
    values: list[str] = []
    start = 0
    while True:
        end = _end_of_value(text, start)
        values.append(text[start:end].strip())
        if end == len(text):
            return values
        start = end + 1


def parse_axes(arguments: Sequence[str]) -> tuple[list[Axis], list[str]]:
    """The axes of the grid, and the ``key=value`` that hold for every candidate.

    Raises:
        ConfigError: every argument that cannot be read, or that a sweep must not vary.
    """
    axes: list[Axis] = []
    fixed: list[str] = []
    problems: list[Problem] = []
    seen: set[str] = set()
    for argument in arguments:
        key, equals, text = argument.partition("=")
        key = key.strip()
        if not equals or not all(key.split(".")):
            say = "write section.key=value,value, as in train.lr=1e-4,2e-4"
            problems.append(Problem(argument, "not values for a key", say))
            continue
        if key in seen:
            problems.append(Problem(key, "is given twice", "give all its values at once"))
            continue
        seen.add(key)
        try:
            values = _values(text)
        except ValueError as error:
            problems.append(Problem(key, f"values {text!r}: {error}"))
            continue
        if len(values) == 1:
            fixed.append(f"{key}={values[0]}")
            continue
        problems += _mistakes(key, values)
        axes.append(Axis(key, tuple(values)))
    if problems:
        raise ConfigError("the sweep cannot be read", problems=problems)
    return axes, fixed


def _mistakes(key: str, values: Sequence[str]) -> Iterator[Problem]:
    if key in _FIXED:
        yield Problem(key, f"cannot be swept: {_FIXED[key][0]}", _FIXED[key][1])
    if key.partition(".")[0] == _NOT_TRAINED[0]:
        yield Problem(key, f"cannot be swept: {_NOT_TRAINED[1]}")
    if "" in values:
        yield Problem(key, "an empty value between commas", "write null for nothing")


# ------------------------------------------------------------------------------------ choosing


def choose_values(
    axes: Sequence[Axis], *, sample: int | None = None, seed: int = 0, yes: bool = False
) -> list[dict[str, str]]:
    """The points of the grid, each key with one value; the last key varies fastest.

    Args:
        axes: keys with their values.
        sample: this many of them, drawn without replacement and kept in their order.
        seed: of the drawing.
        yes: more than `MAX_WITHOUT_YES` are meant.

    Raises:
        ConfigError: nothing to compare, or too much.
    """
    size = math.prod(len(axis.texts) for axis in axes)
    num = size if sample is None else min(sample, size)
    if size < 2 or num < 2:
        raise ConfigError(
            "a sweep compares candidates, and this is one",
            got="no key with several values" if size < 2 else f"--random {sample}",
            expected="two candidates at least, as in train.lr=1e-4,2e-4",
            do="train a single one with: ince train",
        )
    limit = MAX_CANDIDATES if yes else MAX_WITHOUT_YES
    if num > limit:
        raise ConfigError(
            f"the sweep has {num:,} candidates",
            got=" × ".join(f"{len(axis.texts)} of {axis.key}" for axis in axes),
            expected=f"at most {limit:,}" + ("" if yes else " unless --yes is given"),
            do="try a part of them, drawn at random: --random 30",
        )
    if sample is None or num == size:
        chosen: Iterable[int] = range(size)
    else:
        chosen = _drawn(size, num, seed)
    return [_point(axes, index) for index in chosen]


def _drawn(size: int, num: int, seed: int) -> list[int]:
    """`num` different numbers below `size`, which may be beyond what a list could hold.

    Floyd's algorithm (Bentley and Floyd, 1987).
    """
    draw = random.Random(seed)
    chosen: set[int] = set()
    for last in range(size - num, size):
        number = draw.randrange(last + 1)
        chosen.add(last if number in chosen else number)
    return sorted(chosen)


def _point(axes: Sequence[Axis], index: int) -> dict[str, str]:
    values: dict[str, str] = {}
    for axis in reversed(axes):
        index, place = divmod(index, len(axis.texts))
        values[axis.key] = axis.texts[place]
    return {axis.key: values[axis.key] for axis in axes}


# ------------------------------------------------------------------------------------ building


def _names(axes: Sequence[Axis], points: Sequence[dict[str, str]]) -> list[str]:
    """A folder's name for each point: short keys with their values, where these tell them apart."""
    ends = [axis.key.rpartition(".")[2] for axis in axes]
    short = {
        axis.key: end if ends.count(end) == 1 else axis.key
        for axis, end in zip(axes, ends, strict=True)
    }
    names: list[str] = []
    taken: set[str] = set()
    for values in points:
        name = ",".join(f"{short[key]}={_in_name(text)}" for key, text in values.items())
        # Some file systems do not tell capitals from small letters.
        if len(name) > _MAX_NAME_CHARACTERS or name.casefold() in taken:
            digest = hashlib.sha256(json.dumps(values).encode()).hexdigest()[:8]
            name = f"{name[:_MAX_NAME_CHARACTERS]}-{digest}"
        taken.add(name.casefold())
        names.append(name)
    return names


def _in_name(text: str) -> str:
    return _NOT_IN_NAMES.sub("-", _AROUND_VALUES.sub("", text).replace(",", "+"))


def build_candidates(
    axes: Sequence[Axis],
    points: Sequence[dict[str, str]],
    read: Callable[[Sequence[str]], Recipe],
    *,
    folder: Path,
    where: str,
) -> list[Candidate]:
    """A candidate for each point.

    Args:
        axes: keys with their values.
        points: of `choose_values`.
        read: makes the recipe with these ``key=value`` in it.
        folder: of the sweep; each candidate's run gets a folder in it.
        where: name of the recipe, for messages.

    Raises:
        ConfigError: the mistakes of all candidates, or two that are one and the same.
    """
    candidates: list[Candidate] = []
    mistakes: dict[Problem, list[str]] = {}
    for name, values in zip(_names(axes, points), points, strict=True):
        try:
            recipe = read([f"{key}={text}" for key, text in values.items()])
        except ConfigError as error:
            if not error.problems:
                raise
            for problem in error.problems:
                mistakes.setdefault(problem, []).append(name)
            continue
        recipe = recipe.model_copy(update={"output": str(folder / name)})
        candidates.append(Candidate(name, values, recipe))
    if mistakes:
        problems = [_among(problem, names, len(points)) for problem, names in mistakes.items()]
        number = "a mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        raise ConfigError(f"the sweep has {number}", where=where, problems=problems)
    _refuse_twins(candidates)
    return candidates


def _among(problem: Problem, names: Sequence[str], num_candidates: int) -> Problem:
    """The problem with the candidates that have it, unless all of them do."""
    if len(names) == num_candidates:
        return problem
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return Problem(problem.key, f"{problem.what} [in {names[0]}{others}]", problem.suggestion)


def _refuse_twins(candidates: Sequence[Candidate]) -> None:
    def content(candidate: Candidate) -> str:
        return json.dumps(candidate.recipe.to_dict() | {"output": None}, sort_keys=True)

    ordered = sorted(candidates, key=content)
    groups = (list(group) for _, group in itertools.groupby(ordered, key=content))
    twins = [[each.name for each in group] for group in groups if len(group) > 1]
    if twins:
        raise ConfigError(
            "candidates of the sweep are one and the same",
            got="; ".join(" = ".join(names[:3]) for names in twins[:3]),
            do="give each value once",
        )
