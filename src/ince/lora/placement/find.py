"""`find_places`: everything that a config puts into a model, found and checked, nothing changed."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ince.errors import AdapterError, ConfigError, Problem
from ince.lora.config import LoraConfig, PeftConfig
from ince.lora.layers.adapted import Adapted, base_of, outer_modules
from ince.lora.placement.family_places import layer_places
from ince.lora.placement.fused_experts import with_fused_experts
from ince.lora.placement.own_biases import BiasPlace, find_biases, with_own_names
from ince.lora.placement.parameters import (
    check_not_fused,
    find_parameters,
    names_a_parameter,
    with_routers,
)
from ince.lora.placement.places import LayerPlace, Place
from ince.lora.placement.saved_modules import (
    SavedPlace,
    find_saved,
    with_kept_ties,
    with_task_heads,
)
from ince.lora.placement.targets import Target, find_targets, matches, resolve
from ince.lora.placement.tied_layers import tied_places, tied_targets, with_tied_targets
from ince.lora.placement.token_rows import find_token_rows, with_tokens_of_ties

__all__ = ["Found", "find_places", "find_places_of"]


@dataclass(frozen=True)
class Found:
    """What a config comes to in a model."""

    places: list[Place]
    config: PeftConfig
    """As resolved against the model."""
    modules: dict[str, nn.Module]
    """Of the model, as `outer_modules` has them."""

    def fitted(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A file's tensors under the names that they have here, where PEFT's differ."""
        biases = [place for place in self.places if isinstance(place, BiasPlace)]
        saved = [place.name for place in self.places if isinstance(place, SavedPlace)]
        return with_own_names(tensors, biases, saved) if biases else dict(tensors)


def find_places(
    model: nn.Module, config: PeftConfig, *, strict: bool = True
) -> tuple[list[Place], PeftConfig]:
    """Where `config` puts an adapter, low-rank factors first, and the config resolved.

    Args:
        model: the base, with or without other adapters.
        config: of the adapter.
        strict: of a fresh adapter: names that mean nothing are mistakes. Off for one that
            exists, whose tensors say what it touches.

    Raises:
        ConfigError: the config does not fit the model.
        AdapterError: it does not go with the adapters that are there.
    """
    found = find_places_of(model, config, fresh=strict)
    return found.places, found.config


def find_places_of(
    model: nn.Module,
    config: PeftConfig,
    *,
    fresh: bool,
    keys: Collection[str] | None = None,
) -> Found:
    """`find_places`, with the names of an adapter's tensors where there is a file."""
    modules = dict(outer_modules(model))
    if fresh:
        config = with_task_heads(config)
    config = with_kept_ties(model, config, fresh=fresh)
    config = with_tokens_of_ties(model, config, fresh=fresh)
    if fresh and isinstance(config, LoraConfig):
        config = with_fused_experts(model, config)
    if fresh:
        check_not_fused(model, config)
    if isinstance(config, LoraConfig):
        config = with_routers(modules, config)
    saved = find_saved(model, config, fresh=fresh, keys=keys)
    whole = [place.name for place in saved]
    if not any(place.tied_to for place in saved):
        config = with_tied_targets(model, config, fresh=fresh)
    parameters, weights = (
        find_parameters(model, config, fresh=fresh) if isinstance(config, LoraConfig) else ([], [])
    )
    tied = tied_targets(model, config, keys)
    targets = [
        target
        for target in find_targets(
            model,
            config,
            strict=fresh,
            modules=modules,
            # Patterns that mean target parameters may mean no module besides.
            is_known=lambda pattern: (
                isinstance(config, LoraConfig) and names_a_parameter(model, pattern, config)
            ),
        )
        if not _is_in(target.name, whole) and target.name not in tied
    ]
    _check_none_tied(model, config, saved)
    if not targets and not parameters and not weights:
        raise ConfigError(
            "the LoRA config touches nothing but modules that are trained whole",
            where=type(model).__name__,
            got=f"target_modules {config.target_modules!r}",
            do="name others in target_modules",
        )
    _check_one_kind(model, targets, [*(each.name for each in parameters), *_names(weights)])
    resolved = _resolved(model, config, targets)
    factored = {*_names(targets), *tied, *_names(weights), *(place.name for place in parameters)}
    layers = layer_places(config, [*targets, *weights], modules)
    plain = [place for place in layers if isinstance(place, LayerPlace)]
    places: list[Place] = [
        *layers,
        *tied_places(model, tied, plain),
        *parameters,
        *find_biases(model, config, factored=factored, saved=whole),
        *find_token_rows(model, config, whole),
        *saved,
    ]
    _check_none_inside(model, places)
    return Found(places, resolved, modules)


def _names(targets: Sequence[Target]) -> list[str]:
    return [target.name for target in targets]


def _is_in(name: str, whole: Sequence[str]) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in whole)


def _resolved(model: nn.Module, config: PeftConfig, targets: Sequence[Target]) -> PeftConfig:
    if config.target_modules == ():  # which takes target parameters
        return config
    return resolve(model, config, targets)


def _check_none_tied(model: nn.Module, config: PeftConfig, saved: Sequence[SavedPlace]) -> None:
    names = config.target_modules
    for place in saved:
        if place.tied_to is not None and isinstance(names, tuple) and matches(names, place.name):
            raise ConfigError(
                "the config adapts a module whose weight another trains whole",
                where=type(model).__name__,
                problems=[
                    Problem("target_modules", f"{place.name} is tied to {place.tied_to.name}")
                ],
                do="leave one of them out, or set ensure_weight_tying=False",
            )


def _check_one_kind(
    model: nn.Module, targets: Sequence[Target], of_parameters: Sequence[str]
) -> None:
    both = sorted({*_names(targets)} & {*of_parameters})
    if both:
        raise ConfigError(
            "the LoRA config adapts a module and a parameter of it",
            where=type(model).__name__,
            problems=[
                Problem("target_parameters", f"{name} is in target_modules") for name in both
            ],
            do="name it once; target_modules=[] adapts no module",
        )


def _check_none_inside(model: nn.Module, places: Sequence[Place]) -> None:
    """What is wrapped is closed to the model's walks: nothing adapted may lie inside."""
    if all(isinstance(place, LayerPlace) for place in places):
        return  # there is nothing in a layer
    names = {place.name for place in places}
    names.update(name for name, module in outer_modules(model) if isinstance(module, Adapted))
    inside: dict[str, str] = {}
    for name in names:
        parent = name.rpartition(".")[0]
        while parent and inside.setdefault(parent, name) == name:
            parent = parent.rpartition(".")[0]
    for place in places:
        if place.name in inside:
            raise AdapterError(
                "a module to adapt has adapted modules inside",
                where=f"{place.name}, a {type(base_of(place.module)).__name__}",
                got=inside[place.name],
                do="adapt the inner ones or the outer one, not both",
            )
