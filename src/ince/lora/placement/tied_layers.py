"""Low-rank factors of a tied head that are those of the embedding, turned around.

Where ``ensure_weight_tying`` is set and the embedding is a target, W stays one weight for the
embedding and for the head that shares it: both get the same update, (s · B A)ᵀ = s · Aᵀ Bᵀ. The
head's factors are views of the embedding's. A file holds both, as in PEFT.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from ince.errors import ConfigError, Problem
from ince.lora.config import ALL_LINEAR, LoraConfig, PeftConfig
from ince.lora.layers.adapted import PREFIX, Adapted, base_of, outer_modules
from ince.lora.layers.given import GivenTensors
from ince.lora.layers.layer import LoraLayer
from ince.lora.layers.parameters import tie_parameter
from ince.lora.layers.wrapper import innermost, part_of
from ince.lora.placement.places import LayerPlace
from ince.lora.placement.targets import Target, matches
from ince.lora.placement.tied import input_embedding_name, tied_names

__all__ = ["TiedLayerPlace", "tied_places", "tied_targets", "with_tied_targets"]

_Config = TypeVar("_Config", bound=PeftConfig)

# The names by which PEFT sees that an embedding is a target.
_EMBEDDINGS = ("embed_tokens", "lm_head")
_SUFFIXES = {"lora_A.weight": "lora_embedding_B", "lora_B.weight": "lora_embedding_A"}


@dataclass(frozen=True)
class TiedLayerPlace(LayerPlace):
    """A head whose factors are the embedding's."""

    source: LayerPlace
    root: nn.Module
    """The model, where the embedding is found when it is adapted."""

    def add(
        self,
        adapted: Adapted,
        adapter_name: str,
        given: GivenTensors | None = None,  # noqa: ARG002
    ) -> Collection[str]:
        """A and B, as views of the embedding's."""
        layer = part_of(adapted, LoraLayer)
        layer.add_adapter(adapter_name, self.target.spec)
        embedding = self.root.get_submodule(self.source.name)
        assert isinstance(embedding, Adapted)  # its place comes first
        source = part_of(embedding, LoraLayer)
        for suffix, other in _SUFFIXES.items():
            parameter = source.parameter(adapter_name, other)
            assert isinstance(parameter, nn.Parameter)  # an embedding's are its own
            tie_parameter(layer, adapter_name, suffix, parameter)
        return ()

    def start(self, adapted: Adapted, adapter_name: str, config: PeftConfig) -> None:
        """They start as the embedding's."""


def with_tied_targets(model: nn.Module, config: _Config, *, fresh: bool) -> _Config:
    """`config` with a tied embedding among the targets where a module of its weight is.

    Raises:
        ConfigError: factors that cannot be tied.
    """
    group = _tied_group(model, config)
    if not fresh or not group or not _any_meant(config, group):
        return config
    assert isinstance(config, LoraConfig)  # it alone ties
    problems = [
        Problem(name, "does not go with ensure_weight_tying of adapted embeddings")
        for name in ("use_dora", "lora_bias")
        if getattr(config, name)
    ]
    start = config.init_lora_weights
    if not isinstance(start, bool) and start != "gaussian":
        what = f"{start!r} does not go with ensure_weight_tying of adapted embeddings"
        problems.append(Problem("init_lora_weights", what))
    if problems:
        raise ConfigError("factors of another kind cannot be tied", problems=problems)
    embedding, *others = group
    names = config.target_modules
    assert names is not None  # something is meant
    if isinstance(names, str):
        pattern = rf"(?:{names}|^{re.escape(embedding)}$)"
        return config.model_copy(update={"target_modules": pattern})
    kept = [name for name in names if not any(matches((name,), other) for other in others)]
    if embedding not in kept:
        kept.append(embedding)
    if embedding.rpartition(".")[2] not in _EMBEDDINGS:
        kept += others  # PEFT sees by these that there is something to tie
    return config.model_copy(update={"target_modules": tuple(kept)})


def tied_targets(model: nn.Module, config: PeftConfig, keys: Collection[str] | None) -> list[str]:
    """Names of the modules whose factors are the embedding's.

    Args:
        model: the base, with or without adapters.
        config: with the embedding among its targets.
        keys: of the adapter's file, or None.
    """
    group = _tied_group(model, config)
    if not group or not matches(config.target_modules or (), group[0]):
        return []
    assert isinstance(config, LoraConfig)  # it alone ties
    if config.use_dora or config.lora_bias:
        return []  # in a file of PEFT, where they are two
    return [
        name
        for name in group[1:]
        if keys is None or f"{PREFIX}{name}.lora_A.weight" in keys
        if not matches(config.exclude_modules or (), name)
    ]


def tied_places(
    model: nn.Module, names: Collection[str], places: Collection[LayerPlace]
) -> list[TiedLayerPlace]:
    """Places for the modules of `tied_targets`, given that of the embedding."""
    if not names:
        return []
    embedding = input_embedding_name(model)
    source = next((place for place in places if place.name == embedding), None)
    modules = dict(outer_modules(model))
    if source is None:
        return []
    spec = source.target.spec
    return [
        TiedLayerPlace(Target(name, innermost(modules[name]), spec), modules[name], source, model)
        for name in names
    ]


def _tied_group(model: nn.Module, config: PeftConfig) -> tuple[str, ...]:
    """The embedding and the linear layers that share its weight, if they are to stay tied."""
    if not isinstance(config, LoraConfig) or not config.ensure_weight_tying:
        return ()
    modules = dict(outer_modules(model))
    group = tied_names(model).get(input_embedding_name(model) or "", ())
    linear = [name for name in group[1:] if isinstance(base_of(modules[name]), nn.Linear)]
    return (group[0], *linear) if linear else ()


def _any_meant(config: PeftConfig, group: Collection[str]) -> bool:
    names = config.target_modules
    if names is None or names == ALL_LINEAR:
        return False
    return any(matches(names, name) for name in group)
