"""What the routes are bounded by: sizes, times and names. Nothing here is read from a request."""

from dataclasses import dataclass

__all__ = ["HttpSettings"]

_MIB = 1024 * 1024


@dataclass(frozen=True)
class HttpSettings:
    """Settings of the routes; the defaults suit one server for a team.

    Every bound is there because without it one client could take memory or time from all.
    """

    base_name: str
    """The name that stands for the base itself in ``model``."""
    context_length: int
    """Most tokens of a prompt and its answer together."""
    num_tokens: int = 0
    """That the model has logits of; 0: as many as the tokenizer has."""
    max_body_bytes: int = 8 * _MIB
    """Of a JSON body."""
    max_upload_bytes: int = 512 * _MIB
    """Of the JSON of an uploaded adapter."""
    max_sequences: int = 256
    """Of one request: its prompts times ``n``."""
    max_logprobs: int = 20
    """Alternatives a token."""
    timeout_seconds: float = 600.0
    """A request that takes longer is ended; ``X-Request-Timeout`` may ask for less."""
    stall_seconds: float = 30.0
    """A client that takes nothing for so long is given up."""
    stream_events: int = 4096
    """Tokens that may wait for a slow reader before its request is cancelled."""
    load_seconds: float = 120.0
    """How long a load of an adapter may take before the caller is told to look again."""
    hosts: frozenset[str] = frozenset()
    """Names that a ``Host`` header may have; empty: any."""
