"""Choose how a loaded model computes attention, and refuse what does not run here.

``auto`` leaves transformers' choice (``sdpa`` for almost all models), and lets training on a CPU
use ince's own kernel for packed rows (`ince.models.packed_attention`). The others are
transformers' implementations by their names there.
"""

from typing import TYPE_CHECKING, Any, Literal

from ince.errors import ModelReferenceError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["AttentionChoice", "choose_attention"]

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


def _refusal(choice: str, why: str) -> ModelReferenceError:
    return ModelReferenceError(
        "attention cannot be computed in this way",
        where="model.attention",
        got=f"{choice}: {why}",
        do="use auto, which takes what runs here",
    )
