"""Where ``target_parameters`` puts factors: parameters that no layer stands for.

Names are dotted suffixes, such as ``experts.down_proj``. The weight of a linear layer can be
named too, and is adapted as that layer is. Routers of a MoE own their weight in transformers 5;
named among `target_modules` they are adapted by it, as PEFT does.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from ince.errors import AdapterError, ConfigError, Problem, did_you_mean
from ince.lora.config import LoraConfig, PeftConfig
from ince.lora.layers.adapted import (
    PREFIX,
    Adapted,
    base_of,
    outer_modules,
    own_parameters,
    own_tensors,
)
from ince.lora.layers.given import GivenTensors
from ince.lora.layers.kinds import geometry_of
from ince.lora.layers.layer import LoraLayer
from ince.lora.layers.parameter_layer import ParameterLayer, parameter_factor_shapes
from ince.lora.layers.spec import AdapterSpec
from ince.lora.layers.state import AdapterState
from ince.lora.layers.wrapper import innermost, part_of, put_innermost
from ince.lora.placement.targets import Target, matches, value_of
from ince.lora.starts import drawn
from ince.quant import Linear4bit

__all__ = [
    "ParametersPlace",
    "check_not_fused",
    "find_parameters",
    "names_a_parameter",
    "with_routers",
]

_Config = TypeVar("_Config", bound=LoraConfig)

_MAX_NAMES_SHOWN = 12
# How experts call their layers where each has its own.
_OF_EXPERTS = frozenset({"w1", "w2", "w3", "gate_proj", "up_proj", "down_proj"})
# What needs a layer: a weight to normalize, an output to add a bias to, an input to look at.
_FOR_LAYERS = ("use_dora", "lora_bias", "fan_in_fan_out")


@dataclass
class ParametersPlace:
    """A module some of whose parameters get A and B."""

    name: str
    module: nn.Module
    specs: dict[str, AdapterSpec]
    """By parameter, in the order in which the module declares them."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """A and B of each, nested as in PEFT's files: the last that is declared is outermost."""
        base = base_of(self.module)
        found: dict[str, tuple[int, ...]] = {}
        for depth, (parameter, spec) in enumerate(reversed(self.specs.items())):
            stem = f"{PREFIX}{self.name}.{'base_layer.' * depth}"
            shapes = parameter_factor_shapes(
                tuple(own_tensors(base)[parameter].shape),
                spec.r,
                is_transposed=bool(getattr(base, "is_transposed", False)),
            )
            found.update({stem + suffix: shape for suffix, shape in shapes.items()})
        return found

    def wrap(self, module: nn.Module, state: AdapterState) -> Adapted:
        """`ParameterLayer`s, one in the other, in the order of declaration."""
        order = list(own_tensors(base_of(module)))
        inside = innermost(module)
        there = list(inside.nest()) if isinstance(inside, ParameterLayer) else []
        names = {layer.parameter_name for layer in there} | set(self.specs)
        by_name = {layer.parameter_name: layer for layer in there}
        wrapped: nn.Module = base_of(module)
        for name in sorted(names, key=order.index):
            layer = by_name.get(name)
            if layer is None:
                layer = ParameterLayer(wrapped, name, state)
            else:
                layer.base_layer = wrapped
            wrapped = layer
        assert isinstance(wrapped, ParameterLayer)  # there is one at least
        return put_innermost(module, wrapped)

    def add(
        self,
        adapted: Adapted,
        adapter_name: str,
        given: GivenTensors | None = None,  # noqa: ARG002
    ) -> Collection[str]:
        """A and B."""
        for layer in part_of(adapted, ParameterLayer).nest():
            spec = self.specs.get(layer.parameter_name)
            if spec is not None:
                layer.add_adapter(adapter_name, spec)
        return ()

    @torch.no_grad()
    def start(self, adapted: Adapted, adapter_name: str, config: PeftConfig) -> None:
        """As a linear layer's, over all experts."""
        assert isinstance(config, LoraConfig)  # no other method has target parameters
        kind = config.init_lora_weights
        for layer in reversed(list(part_of(adapted, ParameterLayer).nest())):
            if adapter_name not in layer.specs:
                continue
            a, b = layer.factor_parameters(adapter_name)
            shapes = tuple(a.shape), tuple(b.shape)
            if kind is False:
                start = drawn.uniform(*shapes, bias=False)
            elif kind == "gaussian":
                start = drawn.gaussian(*shapes, r=layer.specs[adapter_name].r, bias=False)
            else:
                start = drawn.kaiming(*shapes, bias=False)
            a.copy_(start.a_RD)
            b.copy_(start.b_OR)


def with_routers(modules: Mapping[str, nn.Module], config: _Config) -> _Config:
    """`config` with routers that are among `target_modules` among `target_parameters`."""
    names = config.target_modules
    if not isinstance(names, tuple):
        return config
    ends = tuple([f".{entry}" for entry in names])
    meant = [name for name in modules if name in names or name.endswith(ends)]
    known = {name for name in meant if name and _is_router(modules[name])}
    others = [name for name in meant if known and name not in known]
    routers = [
        entry
        for entry in names
        if any(matches((entry,), name) for name in known)
        and not any(matches((entry,), name) for name in others)
    ]
    if not routers:
        return config
    parameters = (*(config.target_parameters or ()), *(f"{name}.weight" for name in routers))
    return config.model_copy(
        update={
            "target_modules": tuple(name for name in names if name not in routers),
            "target_parameters": tuple(dict.fromkeys(parameters)),
        }
    )


def check_not_fused(model: nn.Module, config: PeftConfig) -> None:
    """Say so when layers of experts are targets, and the model has them fused.

    Raises:
        ConfigError: it has, and no layers of these names.
    """
    names = config.target_modules
    modules = [name for name, _ in outer_modules(model)]
    missing = [
        entry
        for entry in (names if isinstance(names, tuple) else ())
        if entry.rpartition(".")[2] in _OF_EXPERTS
        and not any(matches((entry,), name) for name in modules)
    ]
    fused = {
        ".".join(f"{name}.{parameter}".split(".")[-2:])
        for name, module, parameter in _parameters(model)
        if (tensor := own_tensors(base_of(module)).get(parameter)) is not None and tensor.ndim == 3
    }
    if missing and fused:
        raise ConfigError(
            "the experts of this model are no layers but fused parameters",
            where=type(model).__name__,
            problems=[Problem("target_modules", f"{entry!r} is none") for entry in missing],
            do=f"name them in target_parameters: {', '.join(sorted(fused))}",
        )


def names_a_parameter(model: nn.Module, pattern: str, config: LoraConfig) -> bool:
    """Whether a key of `rank_pattern` or `alpha_pattern` means a target parameter."""
    return any(value_of({pattern: 1}, key, 0) for _, _, key, _ in _meant(model, config))


def find_parameters(
    model: nn.Module, config: LoraConfig, *, fresh: bool
) -> tuple[list[ParametersPlace], list[Target]]:
    """The modules whose parameters are meant; and linear layers whose weight is.

    Raises:
        ConfigError: a name means nothing, or a parameter that cannot be adapted like this.
        AdapterError: another adapter has factors of another kind there.
    """
    entries = config.target_parameters or ()
    if not entries:
        return [], []
    found = list(_meant(model, config))
    keys = [key for _, _, key, _ in found]
    missing = [entry for entry in entries if not any(_means(entry, key) for key in keys)]
    if missing and (fresh or not found):
        known = sorted({".".join(key.split(".")[-2:]) for key in _all_keys(model)})
        raise ConfigError(
            "the LoRA config names parameters that the model does not have",
            where=type(model).__name__,
            problems=[
                Problem("target_parameters", f"{entry!r} matches no parameter", _near(entry, known))
                for entry in missing[:_MAX_NAMES_SHOWN]
            ],
        )
    _check_options(config, fresh=fresh)
    places: dict[str, ParametersPlace] = {}
    targets: list[Target] = []
    for name, module, key, parameter in found:
        spec = _spec(key, config)
        inside = innermost(module)
        is_linear = parameter == "weight" and isinstance(base_of(module), nn.Linear | Linear4bit)
        if is_linear and (isinstance(inside, LoraLayer) or geometry_of(inside) is not None):
            targets.append(Target(name, inside, spec))
            continue
        _check_parameter(key, base_of(module), parameter)
        if fresh:
            _check_rank(key, base_of(module), parameter, spec)
        if isinstance(inside, LoraLayer):
            raise AdapterError(
                "another adapter has factors for the whole layer of this parameter",
                where=key,
                do="delete that adapter first, or name the layer in target_modules",
            )
        place = places.setdefault(name, ParametersPlace(name, module, {}))
        place.specs[parameter] = spec
    return list(places.values()), targets


def _means(entry: str, key: str) -> bool:
    return key == entry or key.endswith(f".{entry}")


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    for name, module in outer_modules(model):
        base = base_of(module)
        for parameter in own_tensors(base) if name else ():
            yield name, module, parameter
        if name and isinstance(base, Linear4bit):
            yield name, module, "weight"


def _all_keys(model: nn.Module) -> list[str]:
    return [f"{name}.{parameter}" for name, _, parameter in _parameters(model)]


def _meant(model: nn.Module, config: LoraConfig) -> Iterator[tuple[str, nn.Module, str, str]]:
    """Module name, module, dotted name and own name of each target parameter."""
    entries = config.target_parameters or ()
    for name, module, parameter in _parameters(model):
        key = f"{name}.{parameter}"
        if any(_means(entry, key) for entry in entries):
            yield name, module, key, parameter


def _near(entry: str, known: Collection[str]) -> str | None:
    short = ".".join(entry.split(".")[-2:])
    return did_you_mean(short, known) or did_you_mean(f"experts.{short}", known)


def _check_options(config: LoraConfig, *, fresh: bool) -> None:
    problems = [
        Problem(name, "does not go with target_parameters")
        for name in _FOR_LAYERS
        if getattr(config, name, False)
    ]
    start = config.init_lora_weights
    if fresh and not isinstance(start, bool) and start != "gaussian":
        problems.append(
            Problem(
                "init_lora_weights",
                f"{start!r} does not go with target_parameters",
                "set True, False or 'gaussian'",
            )
        )
    if problems:
        raise ConfigError(
            "the LoRA config has options that are for layers",
            problems=problems,
            do="leave them out; or the experts of a MoE: exclude_modules=['experts', 'gate']",
        )


def _check_parameter(key: str, module: nn.Module, parameter: str) -> None:
    tensor = own_tensors(module).get(parameter)
    if tensor is None or tensor.ndim not in (2, 3) or not tensor.is_floating_point():
        raise ConfigError(
            "this parameter has no low-rank update",
            where=key,
            got="none" if tensor is None else f"{tensor.dtype} of shape {tuple(tensor.shape)}",
            expected="a matrix of floats, or a stack of them",
        )


def _check_rank(key: str, module: nn.Module, parameter: str, spec: AdapterSpec) -> None:
    largest = max(own_tensors(module)[parameter].shape[-2:])
    if spec.r > largest:
        raise ConfigError(
            "the rank is above what the parameter can have",
            where=key,
            problems=[Problem("r", f"is {spec.r}", "lower it, or set one in rank_pattern")],
            expected=f"at most {largest}",
        )


def _is_router(module: nn.Module) -> bool:
    if isinstance(module, LoraLayer):
        return False
    base = base_of(module)
    weight = own_parameters(base).get("weight")
    return (
        weight is not None
        and weight.ndim == 2
        and geometry_of(base) is None
        and not (isinstance(base, nn.Linear | nn.Embedding))
    )


def _spec(key: str, config: LoraConfig) -> AdapterSpec:
    r = value_of(config.rank_pattern, key, config.r)
    alpha = value_of(config.alpha_pattern, key, config.lora_alpha)
    return AdapterSpec(
        r=r, alpha=alpha, scaling=config.scaling(r, alpha), dropout=config.lora_dropout
    )
