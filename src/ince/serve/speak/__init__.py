"""Answers for one person in this process: by the engine where it can, else by the model itself."""

from ince.serve.speak.choice import open_speaker
from ince.serve.speak.speaker import AnswerOptions, Speaker

__all__ = ["AnswerOptions", "Speaker", "open_speaker"]
