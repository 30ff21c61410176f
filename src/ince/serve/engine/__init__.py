"""Runs requests: which go next, what each step computes, and where keys and values are.

Continuous batching over transformers' own model classes, which are not changed: a step's tokens
stand one to a row, attention reads and writes blocks of a pool, and rows of different adapters
share a step.
"""

from ince.serve.engine.engine import Engine, Handle
from ince.serve.engine.events import (
    Event,
    Failed,
    Finished,
    PromptLogprobs,
    Started,
    Token,
)
from ince.serve.engine.forward import EngineAdapters
from ince.serve.engine.request import GenerationRequest
from ince.serve.engine.stats import EngineStats

__all__ = [
    "Engine",
    "EngineAdapters",
    "EngineStats",
    "Event",
    "Failed",
    "Finished",
    "GenerationRequest",
    "Handle",
    "PromptLogprobs",
    "Started",
    "Token",
]
