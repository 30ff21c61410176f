"""What an adapter is in each of its layers: a config's sizes and scales, its patterns applied."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from ince.errors import ConfigError, Problem, did_you_mean
from ince.lora.allocation.pattern import masks_by_module
from ince.lora.config import AdaLoraConfig, LoraConfig, PeftConfig, VeraConfig
from ince.lora.layers.spec import AdapterSpec

__all__ = ["specs_of", "value_of"]

_MAX_PROBLEMS_SHOWN = 12
# Keeps a layer that lost all its ranks from dividing by zero; as in PEFT, it is always there.
_NOT_ZERO = 1e-5

_Number = TypeVar("_Number", int, float)


def specs_of(config: PeftConfig, names: Sequence[str]) -> dict[str, AdapterSpec]:
    """By dotted name, what the adapter is in the layers of these names.

    Raises:
        ConfigError: AdaLoRA's `rank_pattern` is about other layers, or other ranks.
    """
    if isinstance(config, VeraConfig):
        return dict.fromkeys(names, _vera(config))
    if isinstance(config, AdaLoraConfig):
        return _adalora(config, names)
    assert isinstance(config, LoraConfig)  # there are three methods
    if not config.rank_pattern and not config.alpha_pattern:
        return dict.fromkeys(names, _lora(config, ""))
    return {name: _lora(config, name) for name in names}


def value_of(table: Mapping[str, _Number], name: str, default: _Number) -> _Number:
    """The value of the first pattern that `name` ends with."""
    for pattern, value in table.items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default


def _lora(config: LoraConfig, name: str) -> AdapterSpec:
    r = value_of(config.rank_pattern, name, config.r)
    alpha = value_of(config.alpha_pattern, name, config.lora_alpha)
    return AdapterSpec(
        r=r,
        alpha=alpha,
        scaling=config.scaling(r, alpha),
        dropout=config.lora_dropout,
        variant="dora" if config.use_dora else "lora",
        bias=config.lora_bias,
    )


def _vera(config: VeraConfig) -> AdapterSpec:
    # There is no scale: alpha is what makes alpha / r one.
    return AdapterSpec(
        r=config.r, alpha=config.r, scaling=1.0, dropout=config.vera_dropout, variant="vera"
    )


def _adalora(config: AdaLoraConfig, names: Sequence[str]) -> dict[str, AdapterSpec]:
    masks = masks_by_module(config)
    problems = list(_mistakes(config, masks, names))
    if problems:
        raise ConfigError(
            "the rank_pattern of the AdaLoRA config does not fit",
            problems=problems[:_MAX_PROBLEMS_SHOWN],
            do="use the config that was saved with the adapter, on its base",
        )
    # By the ranks that there were at first, so that giving some up does not change the scale.
    alpha = config.scaling(config.init_r, config.lora_alpha)
    scaling = alpha / (config.init_r + _NOT_ZERO)
    return {
        name: AdapterSpec(
            r=config.init_r if name not in masks else sum(masks[name]),
            alpha=alpha,
            scaling=scaling,
            dropout=config.lora_dropout,
            variant="adalora",
            kept=masks.get(name),
        )
        for name in names
    }


def _mistakes(
    config: AdaLoraConfig, masks: Mapping[str, tuple[bool, ...]], names: Sequence[str]
) -> Iterator[Problem]:
    known = set(names)
    for name, mask in masks.items():
        key = f"rank_pattern.{name}"
        if name not in known:
            yield Problem(key, "is none of the adapted layers", did_you_mean(name, names))
        elif len(mask) != config.init_r:
            yield Problem(key, f"is about {len(mask)} ranks, and init_r is {config.init_r}")
