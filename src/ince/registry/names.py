"""Names of adapters and tenants, and digests: which texts may be one.

Names end up in URLs, metrics, logs and on screens, so they are plain ASCII; none can be a
path that climbs, or be taken for a digest.
"""

import re

from ince.errors import InputError

__all__ = ["SHARED", "check_digest", "check_name", "check_pattern", "check_tenant", "is_digest"]

SHARED = ""
"""The tenant of what all may share."""

_MAX_CHARACTERS = 128
_PART = r"[A-Za-z0-9_-][A-Za-z0-9._-]*"
_NAME = re.compile(rf"{_PART}(?:/{_PART})*")
_TENANT = re.compile(_PART)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_RULE = (
    f"up to {_MAX_CHARACTERS} ASCII letters, digits and . _ - /; no part between slashes is "
    "empty or begins with a dot"
)


def is_digest(text: object) -> bool:
    """Whether `text` is the digest of an adapter, in hex."""
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


def check_digest(text: str) -> str:
    """`text`, which is a whole digest.

    Raises:
        InputError: it is not.
    """
    if not is_digest(text):
        raise InputError("this is no digest", got=text, expected="64 hexadecimal digits")
    return text


def check_name(name: str) -> str:
    """`name`, which an adapter may have.

    Raises:
        InputError: it may not.
    """
    return _check(name, _NAME, "an adapter cannot have this name", _RULE)


def check_tenant(name: str) -> str:
    """`name`, which a tenant may have, or `SHARED`.

    Raises:
        InputError: it may not.
    """
    if name == SHARED and isinstance(name, str):
        return name
    return _check(name, _TENANT, "a tenant cannot have this name", _RULE.replace(" /", ""))


def check_pattern(pattern: str) -> str:
    """`pattern`, which permits names: a name, ``*``, or ``team/*``.

    Raises:
        InputError: it is none.
    """
    if pattern == "*":
        return pattern
    _check(
        pattern.removesuffix("/*") if isinstance(pattern, str) else pattern,
        _NAME,
        "this permits no adapter",
        "a name, or * for all, or team/* for all that begin so",
    )
    return pattern


def _check(name: object, form: re.Pattern[str], what: str, expected: str) -> str:
    fits = isinstance(name, str) and len(name) <= _MAX_CHARACTERS and form.fullmatch(name)
    if not fits or is_digest(name):
        got = "an empty name" if name == "" else name
        raise InputError(what, got=got, expected=expected)
    assert isinstance(name, str)
    return name
