"""`EngineStats`: what an engine has at one moment, and what it did so far."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["EngineStats"]


@dataclass(frozen=True)
class EngineStats:
    """The engine at one moment; counts are since it was made.

    Attributes:
        running: sequences that run.
        waiting: that wait.
        running_by_adapter: digest to sequences; None is the base.
        waiting_by_adapter: the same of those that wait.
        kv_blocks_used: blocks of the KV cache that sequences use.
        kv_blocks_total: of the cache.
        prefix_hit_tokens: found in the cache instead of computed.
        preemptions: times that a running sequence was put back.
        steps: forwards of the model, failed ones not among them.
        tokens: that went through the model.
        generated_tokens: that were chosen.
        step_seconds: in steps.
        draining: no new requests are taken.
        adapters: what the adapters' tiers say of themselves; None without adapters.
    """

    running: int
    waiting: int
    running_by_adapter: Mapping[str | None, int]
    waiting_by_adapter: Mapping[str | None, int]
    kv_blocks_used: int
    kv_blocks_total: int
    prefix_hit_tokens: int
    preemptions: int
    steps: int
    tokens: int
    generated_tokens: int
    step_seconds: float
    draining: bool
    adapters: Any = None
