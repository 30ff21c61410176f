"""Who asks, what they may use, and how much: the view of tenants that the routes have.

`ince.registry` keeps tenants and keys; a server without keys has one caller who may do all,
which is why it only listens on a loopback address. From the first tenant on it wants keys.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["LOCAL", "Caller", "Tenants", "Usage"]


@dataclass(frozen=True)
class Caller:
    """A tenant as a request sees it; None in a limit means that there is none."""

    tenant: str
    is_admin: bool = False
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None


LOCAL = Caller("", is_admin=True)
"""Whoever asks a server without keys."""


@dataclass
class Usage:
    """What a tenant used of an adapter since the last time it was written down."""

    tenant: str
    adapter: str
    """Its digest; empty for the base."""
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Tenants(Protocol):
    """Keys to tenants, and the book of what they used. Calls may take time: not on the loop."""

    def authenticate(self, secret: str) -> Caller | None:
        """The tenant whose key this is, or None; the same work for both."""
        ...

    def known(self, secret: str) -> Caller | None:
        """The same for a key that was right lately, at once; None says nothing. On the loop."""
        ...

    def wants_keys(self) -> bool:
        """Whether a request needs a key; once it did, it does. Quick: on the loop."""
        ...

    def weights(self) -> Mapping[str, float]:
        """Each tenant's share of the work where they compete; 1 of who is not in it."""
        ...

    def record_usage(self, used: Sequence[Usage]) -> None:
        """Add to the tenants' accounts: all of it, or nothing and raise."""
        ...
