"""Targets among the experts of a MoE that transformers 5 keeps fused, as PEFT understands them.

The layers that a config names, ``w1`` to ``w3`` or ``gate_proj`` to ``down_proj`` of each
expert, are two stacked parameters of one module now, and the router ``gate`` owns its weight.
A fresh config that means them, by name, by a regular expression or as "all-linear", comes to
mean the parameters: ``gate_up_proj`` at twice the rank and alpha, as it stands for two layers,
``down_proj``, and ``gate.weight``.

Where the fused experts lie is read from the model. For which models, is a list, since PEFT
goes by one: models of the same build that are not in it keep their experts out of "all-linear",
there as here. What PEFT loses is kept. Layers of these names that are still layers (shared
experts, the first dense ones) are adapted, by their weights, which PEFT reads; and
`exclude_modules`, `layers_to_transform` and expressions that mean some layers are heeded.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

from torch import Tensor, nn

from ince.errors import ConfigError, Problem
from ince.lora.config import ALL_LINEAR, LoraConfig, PeftConfig
from ince.lora.layers.adapted import (
    PREFIX,
    base_of,
    outer_modules,
    own_parameters,
    own_tensors,
)
from ince.lora.placement.specs import value_of
from ince.lora.placement.targets import is_left_out, is_named, matches, with_target_names
from ince.quant import Linear4bit

__all__ = ["MOE_MODELS", "with_experts_as_saved", "with_fused_experts"]

_Config = TypeVar("_Config", bound=PeftConfig)
_Number = TypeVar("_Number", int, float)

_GATE_UP, _DOWN, _ROUTER = "gate_up_proj", "down_proj", "gate"
# The pattern by which PEFT gives all pairs their rank.
_PAIR = rf".*\.{_GATE_UP}"
_PATTERNS = ("rank_pattern", "alpha_pattern")
_MIXTRAL = MappingProxyType({"w1": _GATE_UP, "w3": _GATE_UP, "w2": _DOWN})
_QWEN = MappingProxyType({"gate_proj": _GATE_UP, "up_proj": _GATE_UP, "down_proj": _DOWN})

_MIXTRAL_MODELS = ("minimax", "minimax_m2", "mixtral")
_QWEN_MODELS = (
    "afmoe",
    "beam",
    "cohere2_moe",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "dots1",
    "ernie4_5_moe",
    "exaone_moe",
    "flex_olmo",
    "glm4_moe",
    "glm4_moe_lite",
    "glm4v_moe",
    "glm_moe_dsa",
    "hunyuan_v1_moe",
    "longcat_flash",
    "mellum",
    "olmoe",
    "qwen3_moe",
    "qwen3_next",
    "qwen3_omni_moe",
    "qwen3_omni_moe_text",
    "qwen3_omni_moe_thinker",
    "solar_open",
)
MOE_MODELS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        kind: layers
        for kinds, layers in ((_MIXTRAL_MODELS, _MIXTRAL), (_QWEN_MODELS, _QWEN))
        for kind in kinds
    }
)
"""By the `model_type` of PEFT 0.21's list: the fused parameter that each layer is a part of."""


def with_fused_experts(model: nn.Module, config: LoraConfig) -> LoraConfig:
    """`config`, of a fresh adapter, with fused experts and routers among `target_parameters`.

    Returns:
        `config` itself where it means none, or the model has none.

    Raises:
        ConfigError: one of two layers is meant that are fused.
    """
    fused_as = MOE_MODELS.get(_model_type(model))
    if fused_as is None or config.target_modules is None:
        return config
    modules = {name: base_of(module) for name, module in outer_modules(model) if name}
    experts = [name for name, module in modules.items() if _has_fused_experts(module)]
    if not experts:
        return config
    # The layers that the experts would have, as if all shared them, and what each is part of.
    layers = {
        f"{name}.{layer}": f"{name}.{fused}"
        for name in experts
        for layer, fused in fused_as.items()
    }
    of_experts = [
        layer
        for layer in layers
        if _is_meant(layer, config) and not is_left_out(layer.rpartition(".")[0], config)
    ]
    _check_whole(model, of_experts, layers)
    by_weight = [
        name
        for name, module in modules.items()
        if _leaf(name) in {_ROUTER, *fused_as} and _has_matrix(module) and _is_meant(name, config)
    ]
    if not of_experts and not by_weight and isinstance(config.target_modules, tuple):
        return config
    meant = {layers[layer] for layer in of_experts} | {f"{name}.weight" for name in by_weight}
    every = [f"{name}.{p}" for name, module in modules.items() for p in _parameter_names(module)]
    parameters = (*(config.target_parameters or ()), *_short(sorted(meant), every))
    doubled = [key for key in sorted(meant) if _leaf(key) == _GATE_UP]
    changes: dict[str, object] = {
        "target_parameters": tuple(dict.fromkeys(parameters)) or None,
        "rank_pattern": _doubled(config.rank_pattern, doubled, config.r),
        "alpha_pattern": _doubled(config.alpha_pattern, doubled, config.lora_alpha),
    }
    if isinstance(config.target_modules, tuple):
        changes["target_modules"] = tuple(
            entry
            for entry in config.target_modules
            if not any(matches((entry,), name) for name in (*layers, *by_weight))
        )
        return config.model_copy(update=changes)
    # By name even where no experts are meant: of an expression PEFT keeps the last names alone.
    named = with_target_names(model, config, without=by_weight)
    return named.model_copy(update=changes) if meant or named.target_modules else config


def with_experts_as_saved(
    model: nn.Module, config: _Config, tensors: Mapping[str, Tensor]
) -> _Config:
    """`config`, of a file, with the ranks that its fused experts had when it was saved.

    Files of PEFT have patterns in the order of the alphabet, and the first that matches counts.
    The pattern that PEFT adds for all pairs was the last, and may be the first in the file,
    which PEFT then cannot read. It is the last again where the tensors say so.

    Args:
        model: the base, with or without adapters.
        config: as in the file.
        tensors: of the file, by PEFT's names.
    """
    if not isinstance(config, LoraConfig) or _PAIR not in config.rank_pattern:
        return config
    if _model_type(model) not in MOE_MODELS:
        return config
    modules = {
        name: module
        for name, each in outer_modules(model)
        if _has_fused_experts(module := base_of(each))
    }
    last = {field: _pair_last(getattr(config, field)) for field in _PATTERNS}
    for name in modules:
        key, there = f"{name}.{_GATE_UP}", tensors.get(_a_of_pair(name, tensors))
        experts = own_tensors(modules[name])[_GATE_UP].shape[0]
        was = value_of(last["rank_pattern"], key, config.r)
        now = value_of(config.rank_pattern, key, config.r)
        if there is not None and was != now and there.shape[0] == was * experts:
            keys = [f"{each}.{_GATE_UP}" for each in modules]
            return config.model_copy(
                update={field: _by_name(table, keys) for field, table in last.items()}
            )
    return config


def _a_of_pair(name: str, tensors: Mapping[str, Tensor]) -> str:
    """The name of A of the pair in a file: inside that of the other, where both are adapted."""
    outer, inner = (f"{PREFIX}{name}.{part}lora_A.weight" for part in ("", "base_layer."))
    return inner if inner in tensors else outer


def _pair_last(table: Mapping[str, _Number]) -> dict[str, _Number]:
    return dict(sorted(table.items(), key=lambda item: item[0] == _PAIR))


def _by_name(table: Mapping[str, _Number], keys: Sequence[str]) -> dict[str, _Number]:
    """`table` in words of which no two mean the same pair: those of `keys` left to the last."""
    if _PAIR not in table:
        return {**table}
    others = {pattern: value for pattern, value in table.items() if pattern != _PAIR}
    left = [key for key in keys if not any(value_of({each: 1}, key, 0) for each in others)]
    return {**others, **{re.escape(key): table[_PAIR] for key in left}}


def _doubled(
    patterns: Mapping[str, _Number], keys: Sequence[str], value: _Number
) -> dict[str, _Number]:
    """`patterns`, and twice `value` for the parameters `keys` that none of them means."""
    if not keys or _PAIR in patterns:
        return {**patterns}
    table = {**patterns, _PAIR: 2 * value}
    # Files do not keep the order of patterns: as PEFT has it only where that changes nothing.
    as_read = dict(sorted(table.items()))
    if all(value_of(as_read, key, value) == value_of(table, key, value) for key in keys):
        return table
    return _by_name(table, keys)


def _model_type(model: nn.Module) -> str:
    return str(getattr(getattr(model, "config", None), "model_type", ""))


def _has_fused_experts(module: nn.Module) -> bool:
    own = own_tensors(module)
    return all(name in own and own[name].ndim == 3 for name in (_GATE_UP, _DOWN)) and not any(
        name.endswith("_bias") for name in own
    )


def _has_matrix(module: nn.Module) -> bool:
    """Whether it is a linear layer, or a router: what multiplies by a matrix of its own."""
    if isinstance(module, nn.Linear | Linear4bit):
        return True
    weight = own_parameters(module).get("weight")
    return weight is not None and weight.ndim == 2 and not isinstance(module, nn.Embedding)


def _parameter_names(module: nn.Module) -> set[str]:
    # The weight of a 4-bit layer is packed, and none of its parameters.
    return {*own_tensors(module)} | ({"weight"} if _has_matrix(module) else set())


def _is_meant(name: str, config: LoraConfig) -> bool:
    if config.target_modules == ALL_LINEAR:
        return not is_left_out(name, config)
    return is_named(name, config) and not is_left_out(name, config)


def _check_whole(model: nn.Module, meant: Iterable[str], layers: Mapping[str, str]) -> None:
    there = {*meant}
    problems = {
        f"{_leaf(layer)!r} is fused with {_leaf(other)!r}, into {_leaf(fused)}": _leaf(other)
        for layer, fused in layers.items()
        for other in layers
        if layers[other] == fused and layer in there and other not in there
    }
    if problems:
        raise ConfigError(
            "of two layers of the experts that are fused, the LoRA config adapts one",
            where=type(model).__name__,
            problems=[
                Problem("target_modules", text, f"add {other!r}")
                for text, other in problems.items()
            ],
            do="name both, or neither",
        )


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _short(meant: Iterable[str], every: Iterable[str]) -> list[str]:
    """Names for the parameters of `meant`, short ones where they mean no others of `every`."""
    found: dict[str, list[str]] = {}
    for key in meant:
        depth = 2 if _leaf(key) == "weight" else 1
        found.setdefault(".".join(key.split(".")[-depth:]), []).append(key)
    all_keys = list(every)
    names: list[str] = []
    for short, keys in found.items():
        is_same = {*keys} == {key for key in all_keys if f".{key}".endswith(f".{short}")}
        names += [short] if is_same else keys
    return names
