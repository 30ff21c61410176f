"""`open_speaker`: the engine where it can answer, else the model itself.

The engine switches adapters within a conversation and computes only what is new in it. Some models
and some adapters it does not take (whole modules, embeddings, experts, starts that change the
base): those answer by `ince.infer` on the model with the adapter in it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ince.errors import InceError
from ince.serve.speak.by_engine import EngineSpeaker
from ince.serve.speak.by_model import ModelSpeaker
from ince.serve.speak.speaker import Speaker

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["open_speaker"]


def open_speaker(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    *,
    first: Path | None = None,
    has_adapters: bool = False,
    remark: Callable[[str], None] = lambda _: None,
) -> Speaker:
    """A speaker that is ready to answer: the engine, if it takes the model and the first adapter.

    Args:
        model: the base, without adapters.
        tokenizer: its own.
        first: the adapter that answers first.
        has_adapters: whether others may come.
        remark: is told in a line why it is not the engine, where it is not.

    Raises:
        InceError: what is wrong with the first adapter, where it cannot answer in any way.
    """
    try:
        by_engine = EngineSpeaker(model, tokenizer, has_adapters=has_adapters or first is not None)
    except Exception as error:  # of a model's own code, which raises what it likes
        refusal = error
    else:
        try:
            if first is not None:
                by_engine.load(first)
        except BaseException as error:
            by_engine.close()
            if not isinstance(error, InceError | OSError):
                raise
            refusal = error
        else:
            return by_engine
    by_model = ModelSpeaker(model, tokenizer)
    if first is not None:
        by_model.load(first)
    remark(f"answers come from the model itself, not the engine: {_in_a_line(refusal)}")
    return by_model


def _in_a_line(error: BaseException) -> str:
    if not isinstance(error, InceError):
        return f"{type(error).__name__}: {error}".partition("\n")[0]
    return error.what if error.got is None else f"{error.what} ({error.got})"
