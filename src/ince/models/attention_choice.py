"""Choose how a loaded model computes attention, and refuse what does not run here.

``auto`` leaves transformers' choice (``sdpa`` for almost all models), and lets training on a CPU
use ince's own kernel for packed rows (`ince.models.packed_attention`). The others are
transformers' implementations by their names there.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from ince.errors import ModelReferenceError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["AttentionChoice", "attention_set_to", "choose_attention"]

AttentionChoice = Literal[
    "auto", "sdpa", "eager", "flex_attention", "flash_attention_2", "flash_attention_3"
]


def choose_attention(
    model: "PreTrainedModel", choice: AttentionChoice, *, training: bool = False
) -> None:
    """Let `model` compute attention by `choice`.

    Args:
        model: a model of transformers, loaded and on its device.
        choice: an implementation; ``auto`` changes nothing.
        training: gradients will be asked for.

    Raises:
        ModelReferenceError: the model does not have it, or it does not run on this machine.
    """
    if choice == "auto":
        return
    device = model.device.type
    if choice == "flex_attention" and training and device == "cpu":
        raise _refusal(choice, "flex attention has no gradients on a CPU")
    if choice.startswith("flash") and device != "cuda":
        raise _refusal(choice, f"FlashAttention runs on NVIDIA GPUs, and the model is on {device}")
    try:
        model.set_attn_implementation(choice)
    except (ImportError, ValueError) as error:
        raise _refusal(choice, str(error)) from error
    config: Any = model.config
    if config._attn_implementation != choice:
        raise _refusal(choice, f"{type(model).__name__} computes attention in its own code")


@contextlib.contextmanager
def attention_set_to(
    model: nn.Module, name: str, *, instead_of: str | None = None
) -> Iterator[None]:
    """Inside, the layers of `model` compute attention by an implementation that is registered.

    Args:
        model: whose configs are changed, and are as they were afterwards.
        name: of the implementation.
        instead_of: only layers that use this one; None for all.
    """
    before: dict[int, tuple[Any, str]] = {}
    for module in model.modules():
        config: Any = vars(module).get("config")
        current = getattr(config, "_attn_implementation", None)
        if current is not None and instead_of in (None, current):
            before[id(config)] = config, current
    try:
        for config, _ in before.values():
            config._attn_implementation = name
        yield
    finally:
        for config, current in before.values():
            config._attn_implementation = current


def _refusal(choice: str, why: str) -> ModelReferenceError:
    return ModelReferenceError(
        "attention cannot be computed in this way",
        where="model.attention",
        got=f"{choice}: {why}",
        do="use auto, which takes what runs here",
    )
