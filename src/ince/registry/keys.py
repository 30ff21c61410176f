"""API keys: shown once, kept as an argon2id hash, found by an id that is no secret.

    ince-3f9c0a51b7d2e846-Jx0…  the id of 16 hexadecimal digits, then 256 random bits

The id says which one hash to check, so that a request costs one hash and not one for each key.
An id that is unknown or revoked is checked against a hash that nothing fits: it takes as long as
a wrong secret. A secret that was right is remembered by its SHA-256, in memory, for the
requests that follow; whether it was revoked is looked up each time.
"""

import re
import secrets
import threading
from collections import OrderedDict
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from ince.errors import CorruptFileError, InputError

if TYPE_CHECKING:
    from argon2 import PasswordHasher

__all__ = ["Key", "KeyCheck", "key_id", "new_secret"]

_PREFIX = "ince"
_SECRET_BYTES = 32
_KEY = re.compile(rf"{_PREFIX}-(?P<id>[0-9a-f]{{16}})-[A-Za-z0-9_-]{{43}}")
_MAX_REMEMBERED = 4096
# A secret is 256 random bits: the hash need not slow down guesses, only keep a stolen database
# from being a list of keys. These are the least that OWASP advises for passwords.
_TIME_COST, _MEMORY_KIB = 2, 19456
_MAX_AT_ONCE = 4  # each takes that memory


@dataclass(frozen=True)
class Key:
    """What is kept of a key, but for its hash."""

    id: str
    tenant: str
    label: str
    created: str
    revoked: str | None

    def to_dict(self) -> dict[str, object]:
        """As a JSON-ready object."""
        return asdict(self)


def new_secret() -> str:
    """A new key."""
    return f"{_PREFIX}-{secrets.token_hex(8)}-{secrets.token_urlsafe(_SECRET_BYTES)}"


def key_id(secret: str) -> str | None:
    """The id in a key, or None where the text is no key."""
    found = _KEY.fullmatch(secret)
    return None if found is None else found["id"]


class KeyCheck:
    """Hashes keys and checks them; safe in any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._at_once = threading.BoundedSemaphore(_MAX_AT_ONCE)
        self._verified: OrderedDict[bytes, str] = OrderedDict()
        self._nobodys = ""

    def hash(self, secret: str) -> str:
        """What is kept of a key.

        Raises:
            InputError: argon2-cffi is not installed.
        """
        return _hasher().hash(secret)

    def is_right(self, secret: str, kept: str | None) -> bool:
        """Whether `secret` is the key whose hash was kept; slow unless it was so lately.

        Args:
            secret: as it was given, of any form.
            kept: the hash; None where there is no such key, which takes as long.
        """
        mark = sha256(secret.encode("utf-8", "surrogatepass")).digest()
        with self._lock:
            if not self._nobodys:
                self._nobodys = self.hash(new_secret())
            if kept is not None and self._verified.get(mark) == kept:
                self._verified.move_to_end(mark)
                return True
        # Of one length, whatever was given.
        given = secret if key_id(secret) else mark.hex()
        with self._at_once:
            fits = _fits(self._nobodys if kept is None else kept, given)
        if fits and kept is not None:
            with self._lock:
                self._verified[mark] = kept
                while len(self._verified) > _MAX_REMEMBERED:
                    self._verified.popitem(last=False)
            return True
        return False


def _hasher() -> "PasswordHasher":
    try:
        from argon2 import PasswordHasher
    except ModuleNotFoundError as error:
        raise InputError(
            "keys are hashed by argon2-cffi, which is not installed",
            do="pip install 'ince[serve]'",
        ) from error
    return PasswordHasher(time_cost=_TIME_COST, memory_cost=_MEMORY_KIB, parallelism=1)


def _fits(kept: str, secret: str) -> bool:
    from argon2.exceptions import InvalidHashError, VerificationError

    try:
        return _hasher().verify(kept, secret)
    except VerificationError:
        return False
    except InvalidHashError as error:
        raise CorruptFileError(
            "the registry's database is damaged: the hash of a key is none",
            do="revoke the key and make another",
        ) from error
