"""`PeftModelForCausalLM` and its like: `PeftModel` under the name of its task.

They do nothing else. Trainers look at the names that a model's forward takes, to find the labels
and to leave columns out, and so each says what models of its task take.
"""

import inspect
from collections.abc import Callable
from typing import Any, Literal

from torch import nn

from ince.errors import InputError
from ince.lora.config import PeftConfig, TaskType
from ince.lora.peft_model.dispatch import class_for_task
from ince.lora.peft_model.shell import PeftModel

__all__ = [
    "PeftModelForCausalLM",
    "PeftModelForFeatureExtraction",
    "PeftModelForQuestionAnswering",
    "PeftModelForSeq2SeqLM",
    "PeftModelForSequenceClassification",
    "PeftModelForTokenClassification",
    "get_peft_model",
]

_ENCODED = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
_DECODED = ("decoder_input_ids", "decoder_attention_mask", "decoder_inputs_embeds")


def _taking(*names: str) -> Callable[..., Any]:
    """`PeftModel.forward`, with a signature that names what is usually given."""

    def forward(self: PeftModel, *args: Any, **kwargs: Any) -> Any:
        return PeftModel.forward(self, *args, **kwargs)

    parameter = inspect.Parameter
    listed = [parameter(name, parameter.POSITIONAL_OR_KEYWORD, default=None) for name in names]
    self = parameter("self", parameter.POSITIONAL_OR_KEYWORD)
    rest = parameter("kwargs", parameter.VAR_KEYWORD)
    forward.__signature__ = inspect.Signature([self, *listed, rest])
    forward.__doc__ = PeftModel.forward.__doc__
    return forward


class PeftModelForCausalLM(PeftModel):
    """Text that goes on."""

    task = TaskType.CAUSAL_LM
    base_endings = ("ForCausalLM", "LMHeadModel")
    forward = _taking(*_ENCODED, "labels")


class PeftModelForSeq2SeqLM(PeftModel):
    """Text from text, by an encoder and a decoder."""

    task = TaskType.SEQ_2_SEQ_LM
    base_endings = ("ForConditionalGeneration",)
    forward = _taking(*_ENCODED, *_DECODED, "labels")


class PeftModelForSequenceClassification(PeftModel):
    """Classes of texts."""

    task = TaskType.SEQ_CLS
    base_endings = ("ForSequenceClassification",)
    forward = _taking(*_ENCODED, "labels")


class PeftModelForTokenClassification(PeftModel):
    """Classes of tokens."""

    task = TaskType.TOKEN_CLS
    base_endings = ("ForTokenClassification",)
    forward = _taking(*_ENCODED, "labels")


class PeftModelForQuestionAnswering(PeftModel):
    """Answers as spans of a text."""

    task = TaskType.QUESTION_ANS
    base_endings = ("ForQuestionAnswering",)
    forward = _taking(*_ENCODED, "start_positions", "end_positions")


class PeftModelForFeatureExtraction(PeftModel):
    """Hidden states."""

    task = TaskType.FEATURE_EXTRACTION
    base_endings = ()
    forward = _taking(*_ENCODED)


def get_peft_model(
    model: nn.Module,
    peft_config: PeftConfig,
    adapter_name: str = "default",
    mixed: Literal[False] = False,
    autocast_adapter_dtype: bool = True,
    revision: str | None = None,
    low_cpu_mem_usage: bool = False,
) -> PeftModel:
    """Freeze `model` and put a fresh adapter on it, in place.

    Args:
        model: the base.
        peft_config: of the adapter.
        adapter_name: of the adapter.
        mixed: only False: adapters of several methods do not share a model.
        autocast_adapter_dtype: see `PeftModel`.
        revision: of the base, for the record.
        low_cpu_mem_usage: without effect.

    Raises:
        InputError: `mixed` is asked for; or these are no model and no config.
        ConfigError: the config does not fit the model.
        AdapterError: the model is adapted already: that would train only the new adapter.
    """
    if not isinstance(model, nn.Module) or not isinstance(peft_config, PeftConfig):
        raise InputError(
            "a model and a config are what is adapted",
            got=f"{type(model).__name__}, {type(peft_config).__name__}",
            expected="a torch module, and a LoraConfig, VeraConfig or AdaLoraConfig",
        )
    if mixed:
        raise InputError("adapters of several methods do not share a model", got="mixed=True")
    if revision is not None:
        peft_config = peft_config.model_copy(update={"revision": revision})
    return class_for_task(PeftModel, peft_config.task_type, model)(
        model, peft_config, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage
    )
