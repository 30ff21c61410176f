"""Which layers of a model a config means.

The rules are PEFT's, so that a config means the same layers on either side. What differs:
a name that means nothing is a mistake here, not a silence, and the nearest names are shown.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from torch import nn

from ince.errors import ConfigError, Problem, did_you_mean
from ince.lora.config import ALL_LINEAR, LoraConfig, PeftConfig
from ince.lora.layers.adapted import outer_modules
from ince.lora.layers.geometry import Geometry
from ince.lora.layers.kinds import geometry_of, is_linear, is_transposed, why_not
from ince.lora.layers.layer import LoraLayer
from ince.lora.layers.spec import AdapterSpec
from ince.lora.layers.wrapper import innermost
from ince.lora.placement.defaults import default_targets
from ince.lora.placement.specs import specs_of, value_of
from ince.lora.variants import VARIANTS

__all__ = [
    "Target",
    "find_targets",
    "is_left_out",
    "is_named",
    "matches",
    "resolve",
    "value_of",
    "with_target_names",
]

# How the heads of classifiers are called, which have no output embedding.
_CLASSIFIERS = ("score", "classifier")
_MAX_NAMES_SHOWN = 12
# Variants whose tensors may lie in one layer.
_ALIKE = frozenset({"lora", "dora"})

_Config = TypeVar("_Config", bound=PeftConfig)


@dataclass(frozen=True)
class Target:
    """One layer to adapt: its dotted name, the layer, and what the adapter is in it."""

    name: str
    layer: nn.Module
    spec: AdapterSpec

    @cached_property
    def geometry(self) -> Geometry:
        """How the layer multiplies."""
        layer = self.layer
        geometry = layer.geometry if isinstance(layer, LoraLayer) else geometry_of(layer)
        assert geometry is not None  # it is adaptable
        return geometry


def find_targets(
    model: nn.Module,
    config: PeftConfig,
    *,
    strict: bool = True,
    modules: Mapping[str, nn.Module] | None = None,
    is_known: Callable[[str], bool] | None = None,
) -> list[Target]:
    """The layers of `model` that `config` means, in the model's order. Changes nothing.

    Args:
        model: the base, with or without adapters in it.
        config: what is meant.
        strict: refuse names and patterns that mean nothing. Off when a written adapter is
            read, where its tensors say what it touches.
        modules: of the model by dotted name, as `outer_modules` has them, if at hand.
        is_known: of a pattern of ranks or alphas that means no layer: whether it means
            something else, and is no mistake.

    Raises:
        ConfigError: no layer is meant, a name means nothing, or a layer cannot be adapted, or
            not like this. None need be meant where the config has `target_parameters`.
    """
    layers = _layers_of(modules or dict(outer_modules(model)))
    if strict:
        leaves = _adaptable_leaves(layers)
        problems = [*_unmatched(config, layers, leaves)]
        if problems:
            raise ConfigError(
                "the LoRA config names modules that the model does not have",
                where=type(model).__name__,
                problems=problems,
                do=_offer(leaves),
            )
    config = _with_names(model, config)
    wanted = _wanted(model, layers, config)
    refused = [name for name in wanted if not _is_adaptable(layers[name])]
    if refused:
        raise ConfigError(
            "these modules cannot be adapted",
            where=type(model).__name__,
            problems=[_why_not(name, layers[name]) for name in refused[:_MAX_NAMES_SHOWN]],
            expected="linear, embedding or convolution layers",
            do=_offer(_adaptable_leaves(layers)),
        )
    if not wanted and not _has_parameters(config):
        raise ConfigError(
            "the LoRA config touches no module of the model",
            where=type(model).__name__,
            got=f"target_modules {config.target_modules!r}",
            do=_offer(_adaptable_leaves(layers)),
        )
    specs = specs_of(config, wanted)
    targets = [Target(name, layers[name], specs[name]) for name in wanted]
    problems = [problem for target in targets for problem in _refusals(target, strict=strict)]
    if problems:
        raise ConfigError(
            "these modules cannot be adapted like this",
            where=type(model).__name__,
            problems=problems[:_MAX_NAMES_SHOWN],
            do="leave them out with exclude_modules, or change the options that are named",
        )
    if strict:
        problems = [*_unmatched_patterns(config, wanted, is_known)]
        if problems:
            raise ConfigError(
                "the LoRA config has patterns that match none of its modules",
                where=type(model).__name__,
                problems=problems,
            )
    return targets


def resolve(model: nn.Module, config: _Config, targets: Sequence[Target]) -> _Config:
    """`config` as a file says it, once it has met the model.

    `target_modules` are names, the short ones where they mean the same; `fan_in_fan_out` is
    what the layers are: PEFT warns and sets it, layer by layer, so the last one says.
    """
    config = _with_names(model, config)
    linear = (base for t in reversed(targets) if is_linear(base := _base(t.layer)))
    last = next(linear, None)
    if last is not None:
        config = config.model_copy(update={"fan_in_fan_out": is_transposed(last)})
    if config.target_modules != ALL_LINEAR:
        return config
    return _with_short(model, config, [target.name for target in targets])


def with_target_names(model: nn.Module, config: _Config, *, without: Sequence[str]) -> _Config:
    """`config` with the modules that it means listed by name, but for those of `without`."""
    names = [name for name in _wanted(model, _modules(model), config) if name not in without]
    return _with_short(model, config, names)


def _with_short(model: nn.Module, config: _Config, names: list[str]) -> _Config:
    """`config` with these target modules, by their last names where they mean no others."""
    short = config.model_copy(update={"target_modules": tuple(_leaf_names(names))})
    if _wanted(model, _modules(model), short) == names:
        return short
    return config.model_copy(update={"target_modules": tuple(names)})


def _with_names(model: nn.Module, config: _Config) -> _Config:
    """`config` with the usual names when it has none."""
    if config.target_modules is not None:
        return config
    names = default_targets(model, known_only=_has_parameters(config))
    return config.model_copy(update={"target_modules": names})


def _excluded(config: PeftConfig) -> str | tuple[str, ...] | None:
    return getattr(config, "exclude_modules", None)  # which VeRA does not have


def _has_parameters(config: PeftConfig) -> bool:
    return bool(getattr(config, "target_parameters", None))


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    return _layers_of(dict(outer_modules(model)))


def _layers_of(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    # What other adapters have put around a layer, such as a copy of it, is no hindrance.
    return {name: innermost(module) for name, module in modules.items() if name}


def _adaptable_leaves(layers: Mapping[str, nn.Module]) -> list[str]:
    return _leaf_names([name for name, layer in layers.items() if _is_adaptable(layer)])


def _is_adaptable(module: nn.Module) -> bool:
    return isinstance(module, LoraLayer) or geometry_of(module) is not None


def _base(module: nn.Module) -> nn.Module:
    return module.base_layer if isinstance(module, LoraLayer) else module


def _means_linear(module: nn.Module) -> bool:
    base = _base(module)
    return is_linear(base) or isinstance(base, nn.Linear)


def _leaf_names(names: Iterable[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in names if not name[-1].isdigit()})


def _offer(leaves: list[str]) -> str | None:
    if not leaves:
        return None
    shown = ", ".join(leaves[:_MAX_NAMES_SHOWN]) + (", …" if len(leaves) > _MAX_NAMES_SHOWN else "")
    return f"target some of {shown}; or {ALL_LINEAR!r}"


def matches(pattern: str | tuple[str, ...], name: str) -> bool:
    """Whether a regular expression means the whole `name`, or one of the names its end."""
    return _matcher(pattern)(name)


def _matcher(pattern: str | tuple[str, ...]) -> Callable[[str], bool]:
    """`matches` for many names."""
    if isinstance(pattern, str):
        expression = re.compile(pattern)
        return lambda name: expression.fullmatch(name) is not None
    ends = tuple([f".{entry}" for entry in pattern])
    return lambda name: name in pattern or name.endswith(ends)


def _layer_number(name: str, layers_pattern: str | tuple[str, ...] | None) -> int | None:
    """The first number in `name` that counts layers: after a list of that name, or any."""
    if not layers_pattern:
        found = re.match(r"(?:.*?\.)?[^.]*\.(\d+)\.", name)
        return int(found[1]) if found else None
    for pattern in (layers_pattern,) if isinstance(layers_pattern, str) else layers_pattern:
        found = re.match(rf"(?:^|.*?\.)(?:{pattern})\.(\d+)\.", name)
        if found:
            return int(found[1])
    return None


def _layers(config: PeftConfig) -> tuple[int, ...]:
    layers = config.layers_to_transform
    if layers is None:
        return ()
    return (layers,) if isinstance(layers, int) else layers


def _wanted(model: nn.Module, modules: dict[str, nn.Module], config: PeftConfig) -> list[str]:
    names = config.target_modules
    if names is None:
        return []
    if names == ALL_LINEAR:
        head = _output_head(model, config)
        found = [
            name for name, module in modules.items() if _means_linear(module) and module is not head
        ]
    else:
        is_meant = _matcher(names)
        found = [name for name in modules if is_meant(name)]
        if _layers(config):
            found = [name for name in found if is_named(name, config)]
    if _excluded(config) is None and not config.modules_to_save:
        return found
    return [name for name in found if not is_left_out(name, config)]


def is_named(name: str, config: PeftConfig) -> bool:
    """Whether names or an expression in `target_modules` mean a module of this name."""
    names, layers = config.target_modules, _layers(config)
    return (
        names is not None
        and matches(names, name)
        # As in PEFT, a module named in full is meant whatever its layer.
        and (not layers or name in names or _layer_number(name, config.layers_pattern) in layers)
    )


def is_left_out(name: str, config: PeftConfig) -> bool:
    """Whether a module of this name is excluded, or trained whole."""
    exclude = _excluded(config)
    if exclude is not None and matches(exclude, name):
        return True
    # What is trained whole gets no update beside it.
    return any(
        re.match(rf"(^|.*\.){saved}($|\..*)", name) for saved in config.modules_to_save or ()
    )


def _output_head(model: nn.Module, config: PeftConfig) -> nn.Module | None:
    output_embeddings = getattr(model, "get_output_embeddings", None)
    head = output_embeddings() if callable(output_embeddings) else None
    if head is None and config.task_type == "SEQ_CLS":
        head = next((getattr(model, name) for name in _CLASSIFIERS if hasattr(model, name)), None)
    return innermost(head) if isinstance(head, nn.Module) else None


def _unmatched(
    config: PeftConfig, modules: dict[str, nn.Module], leaves: list[str]
) -> Iterator[Problem]:
    fields = (
        ("target_modules", config.target_modules),
        ("exclude_modules", _excluded(config)),
    )
    for key, names in fields:
        for entry in names if isinstance(names, tuple) else ():
            if not any(matches((entry,), name) for name in modules):
                near = did_you_mean(entry.rpartition(".")[2], leaves)
                yield Problem(key, f"{entry!r} matches no module", near)
    for layer in _layers(config):
        if all(_layer_number(name, config.layers_pattern) != layer for name in modules):
            yield Problem("layers_to_transform", f"there is no layer {layer}")


def _unmatched_patterns(
    config: PeftConfig, wanted: list[str], is_known: Callable[[str], bool] | None
) -> Iterator[Problem]:
    if not isinstance(config, LoraConfig):
        return
    patterns = (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern))
    for key, table in patterns:
        for pattern in table:
            if any(value_of({pattern: 1}, name, 0) for name in wanted):
                continue
            if is_known is None or not is_known(pattern):
                near = did_you_mean(pattern.rpartition(".")[2], _leaf_names(wanted))
                yield Problem(f"{key}.{pattern}", "matches none of the target modules", near)


def _refusals(target: Target, *, strict: bool) -> Iterator[Problem]:
    layer, spec, geometry = target.layer, target.spec, target.geometry
    variant = VARIANTS[spec.variant]
    refusal = geometry.refusal(spec) or variant.refusal(geometry) or _other_method(layer, spec)
    if refusal is not None:
        yield Problem(target.name, refusal)
    # Between its sides a rank is of no use, but of no harm either: gates of one output share
    # the rank of their neighbors.
    if not strict or spec.variant == "vera":
        return
    largest = max(geometry.in_features, geometry.out_features)
    if spec.r > largest:
        what = f"has a rank of at most {largest}, not {spec.r}"
        yield Problem(target.name, what, "lower r, or its rank in rank_pattern")


def _other_method(layer: nn.Module, spec: AdapterSpec) -> str | None:
    if not isinstance(layer, LoraLayer) or not layer.specs:
        return None
    other = next(iter(layer.specs.values()))  # those that are there go together
    if other.variant == spec.variant or {other.variant, spec.variant} <= _ALIKE:
        return None
    return f"has an adapter of another method: {other.variant}, and this is {spec.variant}"


def _why_not(name: str, module: nn.Module) -> Problem:
    suggestion = "put it in exclude_modules" if isinstance(module, nn.Linear) else None
    return Problem(name, why_not(module), suggestion)
