"""Let a model speak: batched, seeded generation, and text as it is written."""

from ince.infer.generate import Generation, generate
from ince.infer.mode import evaluating
from ince.infer.parts import Parts
from ince.infer.prompt import Turn, stop_tokens
from ince.infer.stream import stream

__all__ = ["Generation", "Parts", "Turn", "evaluating", "generate", "stop_tokens", "stream"]
