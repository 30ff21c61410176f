"""What a LoRA adapter is made of: `LoraConfig`, with the names and defaults of PEFT.

A config says which modules are adapted, at which rank and scale, and how they start. It is
frozen: what was trained is what is written down. Options that PEFT knows and ince does not
build are accepted at their neutral value, since that means nothing, and refused by name at
any other: an option is never ignored.

Source of the fields: Hugging Face PEFT, `adapter_config.json`; LoRA, arXiv:2106.09685.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, Self, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    StrictBool,
    StrictFloat,
    StrictInt,
    ValidationError,
    field_validator,
    model_validator,
)

from ince.errors import AdapterError, ConfigError, Problem, did_you_mean

__all__ = ["ALL_LINEAR", "LoraConfig"]

ALL_LINEAR = "all-linear"

# The release of PEFT whose file format is written.
_PEFT_FORMAT = "0.21.2"

# Options of PEFT that change what an adapter is, with the value that leaves them unused.
_NOT_BUILT: Mapping[str, object] = {
    "alora_invocation_tokens": None,
    "arrow_config": None,
    "corda_config": None,
    "ensure_weight_tying": False,
    "eva_config": None,
    "kasa_config": None,
    "layer_replication": None,
    "loftq_config": {},
    "lora_bias": False,
    "lora_ga_config": None,
    "megatron_config": None,
    "modules_to_save": None,
    "monteclora_config": None,
    "target_parameters": None,
    "trainable_token_indices": None,
    "use_bdlora": None,
    "use_dora": False,
    "use_qalora": False,
    "velora_config": None,
}

# Keys of an adapter_config.json that say nothing about the adapter itself.
_INFORMATION: Mapping[str, object] = {
    "auto_mapping": None,
    "megatron_core": "megatron.core",
    "peft_type": "LORA",
    "peft_version": _PEFT_FORMAT,
    "qalora_group_size": 16,
}
_IGNORED_IN_FILES = frozenset({*_INFORMATION, "runtime_config"})

# PEFT trains a new head beside the adapter for these, which is modules_to_save.
_TASKS_WITH_A_HEAD = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")

_Rank = Annotated[StrictInt, Field(ge=1)]
_Alpha = Annotated[StrictInt | StrictFloat, Field(gt=0, allow_inf_nan=False)]
_Names = tuple[str, ...]


def _check_regex(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    return pattern


class LoraConfig(BaseModel):
    """Settings of one adapter.

    ``y = W x + s · B(A x)`` with ``s = lora_alpha / r``, A: (r, in), B: (out, r).

    Raises:
        ConfigError: on construction; every mistake is in `problems`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    r: _Rank = 8
    """Rank of the update."""
    lora_alpha: _Alpha = 8
    """Numerator of the scale s = lora_alpha / r."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.0
    """Share of a layer's inputs that A does not see in a training step."""
    target_modules: str | _Names | None = None
    """Names or dotted suffixes; or a regular expression for the whole name; or "all-linear",
    every linear layer but the output head. None is q_proj and v_proj."""
    exclude_modules: str | _Names | None = None
    """Modules left out, in the same notation."""
    use_rslora: StrictBool = False
    """Scale by lora_alpha / sqrt(r) instead (arXiv:2312.03732)."""
    init_lora_weights: StrictBool | Literal["gaussian"] = True
    """True: A Kaiming-uniform, B zero. "gaussian": A normal of deviation 1/r, B zero.
    False: both uniform, so that the adapter is no identity at its start (for tests)."""
    layers_to_transform: int | tuple[int, ...] | None = None
    """Only these layer numbers; with `target_modules` as a list."""
    layers_pattern: str | _Names | None = None
    """Name of the list that the layer numbers count in, such as "layers"."""
    rank_pattern: dict[str, _Rank] = Field(default_factory=dict)
    """Other ranks, by suffix or regular expression."""
    alpha_pattern: dict[str, _Alpha] = Field(default_factory=dict)
    """Other alphas, by suffix or regular expression."""
    bias: Literal["none"] = "none"
    """Biases stay frozen."""
    fan_in_fan_out: Literal[False] = False
    """Weights are (out, in)."""
    task_type: Literal["CAUSAL_LM", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION"] | None = None
    base_model_name_or_path: str | None = None
    """The base that the adapter was trained on."""
    revision: str | None = None
    inference_mode: StrictBool = False
    """True in files: the adapter is loaded frozen unless asked otherwise."""

    @model_validator(mode="wrap")
    @classmethod
    def _report_all_mistakes(cls, data: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(data, Mapping):
            return handler(data)
        values = dict(cast("Mapping[str, object]", data))
        problems = list(_refuse_not_built(values))
        for name in sorted(set(values) - set(cls.model_fields)):
            known = [*cls.model_fields, *_NOT_BUILT]
            problems.append(Problem(name, "no such option", did_you_mean(name, known)))
            del values[name]
        try:
            config = handler(values)
        except ValidationError as error:
            raise ConfigError(
                "the LoRA config has mistakes", problems=[*problems, *_problems(error)]
            ) from None
        problems += _contradictions(config)
        if problems:
            raise ConfigError("the LoRA config has mistakes", problems=problems)
        return config

    @field_validator("target_modules", "exclude_modules", "layers_pattern", mode="before")
    @classmethod
    def _as_tuple(cls, value: object) -> object:
        # A set has no order of its own; written files should not depend on hash seeds.
        if isinstance(value, set | frozenset):
            return tuple(sorted(cast("set[str]", value)))
        if isinstance(value, list | tuple):
            return tuple(dict.fromkeys(cast("Iterable[str]", value)))
        return value

    @field_validator("rank_pattern", "alpha_pattern", mode="before")
    @classmethod
    def _none_is_empty(cls, value: object) -> object:
        return {} if value is None else value

    @field_validator("target_modules", "exclude_modules")
    @classmethod
    def _names_are_usable(cls, value: str | _Names | None) -> str | _Names | None:
        if isinstance(value, str) and value.lower() != ALL_LINEAR:
            return _check_regex(value)
        if isinstance(value, str):
            return ALL_LINEAR
        if value is not None and not all(value):
            raise ValueError("an empty name matches no module")
        return value

    @field_validator("target_modules")
    @classmethod
    def _names_something(cls, value: str | _Names | None) -> str | _Names | None:
        if value is not None and not value:
            raise ValueError(f"names no module; leave it out, or say {ALL_LINEAR!r}")
        return value

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _patterns_compile(cls, value: dict[str, float]) -> dict[str, float]:
        for pattern in value:
            _check_regex(pattern)
        return value

    def scaling(self, r: int, alpha: float) -> float:
        """The factor s of a layer of rank `r` and this `alpha`."""
        return alpha / (math.sqrt(r) if self.use_rslora else r)

    def to_peft_dict(self) -> dict[str, object]:
        """The config as PEFT writes it, every key of its format included."""
        values: dict[str, object] = self.model_dump(mode="json")
        return dict(sorted({**_NOT_BUILT, **_INFORMATION, **values}.items()))

    @classmethod
    def from_peft_dict(cls, values: Mapping[str, object], *, where: object = None) -> Self:
        """The config in an `adapter_config.json` of PEFT.

        Options that ince does not know are passed over when they are off (null, false or
        empty), so that files of a newer PEFT load; any other value is refused.

        Raises:
            AdapterError: the file is of another method than LoRA.
            ConfigError: mistakes, or options that are not built.
        """
        method = values.get("peft_type")
        if method != "LORA":
            raise AdapterError(
                "not a LoRA adapter",
                where=where,
                got=f"peft_type {method!r}",
                expected="peft_type 'LORA'",
                do="train a LoRA adapter, or merge this one into its base with the tool it is from",
            )
        kept = {
            name: value
            for name, value in values.items()
            if name not in _IGNORED_IN_FILES
            and (
                name in cls.model_fields or name in _NOT_BUILT or value not in (None, False, {}, [])
            )
        }
        try:
            return cls.model_validate(kept)
        except ConfigError as error:
            raise ConfigError(
                "the adapter's config cannot be used", where=where, problems=error.problems
            ) from None


def _refuse_not_built(values: dict[str, object]) -> Iterable[Problem]:
    """Take options that are not built out of `values`, reporting those that are in use."""
    for name, neutral in _NOT_BUILT.items():
        if name in values:
            value = values.pop(name)
            if value != neutral and value not in (None, False, {}, []):
                yield Problem(name, f"{value!r} is not supported", f"leave it at {neutral!r}")
    bias = values.get("bias", "none")
    if bias in ("all", "lora_only"):
        del values["bias"]
        yield Problem("bias", f"{bias!r} is not supported", "leave it at 'none'")
    if values.get("fan_in_fan_out", False) is True:
        del values["fan_in_fan_out"]
        yield Problem("fan_in_fan_out", "True is not supported", "weights are (out, in)")
    start = values.get("init_lora_weights", True)
    if isinstance(start, str) and start != "gaussian":
        del values["init_lora_weights"]
        yield Problem(
            "init_lora_weights", f"{start!r} is not supported", "True, 'gaussian' or False"
        )
    task = values.get("task_type")
    if task is not None:
        task = str(getattr(task, "value", task))
        values["task_type"] = task
        if task in _TASKS_WITH_A_HEAD:
            del values["task_type"]
            yield Problem(
                "task_type", f"{task!r} trains a head, which is not supported", "use 'CAUSAL_LM'"
            )


def _contradictions(config: LoraConfig) -> Iterable[Problem]:
    if config.layers_to_transform is not None and isinstance(config.target_modules, str):
        yield Problem("layers_to_transform", "needs target_modules as a list of names")
    if config.layers_pattern and config.layers_to_transform is None:
        yield Problem("layers_pattern", "says nothing without layers_to_transform")


def _problems(error: ValidationError) -> Iterable[Problem]:
    """One problem per key: a union reports each of its branches, a person wants the key."""
    seen: set[str] = set()
    for detail in error.errors():
        location = [str(part) for part in detail["loc"]]
        key = ".".join(
            location[:2] if location[:1] in (["rank_pattern"], ["alpha_pattern"]) else location[:1]
        )
        if key in seen:
            continue
        seen.add(key)
        what = detail["msg"].removeprefix("Value error, ")
        got = "" if not key else f", got {detail['input']!r}"
        yield Problem(key, f"{what[:1].lower()}{what[1:]}{got}")
