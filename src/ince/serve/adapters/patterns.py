"""Expressions in an adapter's config that could hold up a server.

PEFT's configs name layers by regular expressions, and matching one may take time that doubles with
every letter of a name. Python matches without letting other threads on. So what comes from
strangers is looked at first: no repetition inside of a repetition, few of them, and none long.
"""

import re
from collections.abc import Iterator, Mapping

from ince.errors import AdapterError

__all__ = ["check_patterns"]

_MAX_CHARACTERS = 2000
_MAX_REPETITIONS = 4
_MAX_PATTERNS = 1000
_KEYS = ("target_modules", "exclude_modules", "layers_pattern")
_TABLES = ("rank_pattern", "alpha_pattern")
_ESCAPE_OR_CLASS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_REPEAT = re.compile(r"[*+]|\{\d*,?\d*\}")


def check_patterns(config: Mapping[str, object], *, where: object) -> None:
    """Refuse a config whose expressions may take for ever.

    Args:
        config: the object in the file.
        where: the file, for messages.

    Raises:
        AdapterError: one repeats a repetition or a choice, or there are too many.
    """
    patterns = list(_patterns(config))
    if len(patterns) > _MAX_PATTERNS:
        raise _refused("too many patterns", where, f"{len(patterns)}", f"at most {_MAX_PATTERNS}")
    for key, pattern in patterns:
        place = f"{where}: {key}"
        if len(pattern) > _MAX_CHARACTERS:
            got = f"{len(pattern)} characters"
            raise _refused("a pattern is too long", place, got, f"at most {_MAX_CHARACTERS}")
        # What is escaped or in a class repeats nothing and opens nothing.
        plain = _ESCAPE_OR_CLASS.sub("x", pattern)
        if _repeats_a_repetition(plain) or len(_REPEAT.findall(plain)) > _MAX_REPETITIONS:
            raise _refused(
                "matching a pattern of the adapter could take for ever",
                place,
                pattern,
                f"at most {_MAX_REPETITIONS} repetitions, none within a repeated group",
            )


def _patterns(config: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    for key in _KEYS:
        value = config.get(key)
        if isinstance(value, str):
            yield key, value
        elif key == "layers_pattern" and isinstance(value, list):
            yield from ((key, each) for each in value if isinstance(each, str))
    for key in _TABLES:
        table = config.get(key)
        if isinstance(table, dict):
            yield from ((key, str(each)) for each in table)


def _repeats_a_repetition(plain: str) -> bool:
    """Whether a group that repeats, or offers a choice, is repeated itself."""
    groups = [False]
    for place, character in enumerate(plain):
        if character == "(":
            groups.append(False)
        elif character == ")" and len(groups) > 1:
            inner = groups.pop()
            if inner and _REPEAT.match(plain, place + 1):
                return True
            groups[-1] = groups[-1] or inner
        elif character in "*+|{":
            groups[-1] = True
    return False


def _refused(what: str, where: object, got: str, expected: str) -> AdapterError:
    return AdapterError(
        what,
        where=where,
        got=got,
        expected=expected,
        do="name the modules in a list, as PEFT writes them",
    )
