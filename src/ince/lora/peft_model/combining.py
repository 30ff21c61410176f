"""New adapters from those of a model: combined, or of lower rank.

The mathematics is `ince.lora.combine`'s, layer by layer. Here the layers are gathered, and the
result is put into the form of a file (config and named tensors), so that it is checked and added
as any other adapter is: wholly or not at all.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeVar

from torch import Tensor, nn

from ince.errors import AdapterError
from ince.lora.combine import (
    Part,
    check_combination,
    combine_layer,
    plan_ranks,
    reduce_rank,
    singular_values,
)
from ince.lora.config import LoraConfig, PeftConfig
from ince.lora.factors import Factors
from ince.lora.layers.adapted import PREFIX, adapted_modules
from ince.lora.layers.kinds import is_transposed
from ince.lora.layers.layer import LoraLayer
from ince.lora.layers.wrapper import Wrapper
from ince.lora.placement.inject import lora_layers
from ince.lora.placement.targets import find_targets

__all__ = ["combined_adapter", "reduced_adapter"]

_Number = TypeVar("_Number", int, float)

# Starts that say nothing about the base; others would be looked for on loading.
_PLAIN_STARTS = (True, False, "gaussian", "orthogonal")


def combined_adapter(
    model: nn.Module,
    configs: Mapping[str, PeftConfig],
    adapters: Sequence[str],
    weights: Sequence[float],
    combination_type: str,
    *,
    svd_rank: int | None,
    svd_clamp: float | None,
    svd_full_matrices: bool,
    svd_driver: str | None,
    density: float | None,
    majority_sign_method: str,
) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Config and tensors of a combination, as `LoraModel.add_weighted_adapter` says.

    Raises:
        ConfigError, AdapterError: it cannot be made.
    """
    layers = lora_layers(model)
    combination = check_combination(
        combination_type,
        adapters,
        weights,
        {name: _rank(name, config, layers) for name, config in configs.items()},
        svd_rank=svd_rank,
        svd_clamp=svd_clamp,
        svd_full_matrices=svd_full_matrices,
        svd_driver=svd_driver,
        density=density,
        majority_sign_method=majority_sign_method,
    )
    chosen = [_lora_config(name, configs[name]) for name in adapters]
    tensors: dict[str, Tensor] = {}
    touched: list[str] = []
    for name, layer in layers:
        parts = [
            Part(f.a_RD, f.b_OR, f.s, weight, adapter)
            for adapter, weight in zip(adapters, weights, strict=True)
            if adapter in layer.specs
            for f in (_plain_factors(name, layer, adapter),)
        ]
        if parts:
            touched.append(name)
            a_RD, b_OR = combine_layer(combination, parts, transposed=_is_transposed(layer))
            tensors.update(_named(name, layer, a_RD, b_OR))
    rank = combination.rank
    config = chosen[0].model_copy(
        update={
            "r": rank,
            "lora_alpha": rank,
            "use_rslora": False,
            "rank_pattern": {},
            "alpha_pattern": {},
            **_plain_start(chosen[0]),
            **_whole_modules(chosen),
        }
    )
    tensors.update(_whole_tensors(model, adapters))
    return _with_targets(model, config, chosen, touched), tensors


def reduced_adapter(
    model: nn.Module,
    config: PeftConfig,
    adapter_name: str,
    *,
    r: int | None,
    energy: float | None,
) -> tuple[LoraConfig, dict[str, Tensor], dict[str, int]]:
    """Config, tensors and ranks of the nearest adapter of lower rank.

    Every layer keeps its scale.

    Raises:
        ConfigError, AdapterError: there is none.
    """
    old = _lora_config(adapter_name, config)
    layers = [(name, layer) for name, layer in lora_layers(model) if adapter_name in layer.specs]
    found = {name: _plain_factors(name, layer, adapter_name) for name, layer in layers}
    spectra = {name: singular_values(f.a_RD, f.b_OR) for name, f in found.items()}
    ranks = plan_ranks(spectra, rank=r, energy=energy)
    tensors = _whole_tensors(model, [adapter_name])
    for name, layer in layers:
        reduced = reduce_rank(found[name].a_RD, found[name].b_OR, ranks[name])
        tensors.update(_named(name, layer, reduced.a_RD, reduced.b_OR))
    alphas = {name: _tidy(found[name].s * rank) for name, rank in ranks.items()}
    most_rank, rank_pattern = _with_exceptions(ranks)
    most_alpha, alpha_pattern = _with_exceptions(alphas)
    new = old.model_copy(
        update={
            "r": most_rank,
            "lora_alpha": most_alpha,
            "use_rslora": False,
            "rank_pattern": rank_pattern,
            "alpha_pattern": alpha_pattern,
            **_plain_start(old),
        }
    )
    return _with_targets(model, new, [old], [name for name, _ in layers]), tensors, ranks


# ------------------------------------------------------------------------------------- layers


def _rank(adapter: str, config: PeftConfig, layers: Sequence[tuple[str, LoraLayer]]) -> int:
    """Of the config, as PEFT counts; higher where a start is taken off again."""
    pattern = getattr(config, "rank_pattern", None) or {}
    of_config = [getattr(config, "r", 1), *(each for each in pattern.values())]
    of_layers = [
        layer.factors(adapter).a_RD.shape[0] for _, layer in layers if adapter in layer.specs
    ]
    return max(*(each for each in of_config if isinstance(each, int)), *of_layers, 1)


def _plain_factors(name: str, layer: LoraLayer, adapter: str) -> Factors:
    factors = layer.factors(adapter)
    if not factors.is_plain:
        what = "a magnitude (DoRA)" if factors.magnitude is not None else "a bias (lora_bias)"
        raise AdapterError(
            "only plain low-rank updates are combined or reduced",
            where=f"{adapter!r} in {name}",
            got=f"an update with {what}",
            do="merge the adapter instead",
        )
    return factors


def _is_transposed(layer: LoraLayer) -> bool:
    return isinstance(layer.base_layer, nn.Embedding) or is_transposed(layer.base_layer)


def _named(name: str, layer: LoraLayer, a_RD: Tensor, b_OR: Tensor) -> dict[str, Tensor]:
    """Factors under the names of a file, in the shapes in which the layer keeps them."""
    shapes = layer.geometry.factor_shapes(a_RD.shape[0])
    named = zip(shapes.items(), (a_RD, b_OR), strict=True)
    return {f"{PREFIX}{name}.{suffix}": factor.reshape(shape) for (suffix, shape), factor in named}


# ------------------------------------------------------------------------------------- configs


def _lora_config(name: str, config: PeftConfig) -> LoraConfig:
    if not isinstance(config, LoraConfig):
        raise AdapterError(
            "only LoRA adapters are combined or reduced", where=name, got=config.peft_type
        )
    if config.target_parameters:
        raise AdapterError(
            "adapters of parameters without a module are not combined or reduced",
            where=name,
            got=f"target_parameters {config.target_parameters!r}",
        )
    if config.bias != "none":
        raise AdapterError(
            "adapters that train biases of the base are not combined or reduced",
            where=name,
            got=f"bias={config.bias!r}",
        )
    return config


def _plain_start(config: LoraConfig) -> dict[str, object]:
    start = config.init_lora_weights
    return {
        "init_lora_weights": start if start in _PLAIN_STARTS else True,
        "loftq_config": None,
        "eva_config": None,
        "lora_ga_config": None,
        "inference_mode": False,
    }


def _whole_modules(configs: Sequence[LoraConfig]) -> dict[str, object]:
    """Options of what is trained besides A and B, of all adapters together."""
    modules = dict.fromkeys(name for each in configs for name in each.modules_to_save or ())
    tokens = [each.trainable_token_indices for each in configs if each.trainable_token_indices]
    return {
        "modules_to_save": tuple(modules) or None,
        "trainable_token_indices": tokens[0] if tokens else None,
    }


def _whole_tensors(model: nn.Module, adapters: Sequence[str]) -> dict[str, Tensor]:
    """Copies of what adapters train besides A and B; at most one of them in each module."""
    tensors: dict[str, Tensor] = {}
    wrappers = [
        (name, each)
        for name, adapted in adapted_modules(model)
        for each in adapted.chain()
        if isinstance(each, Wrapper)
    ]
    for name, wrapper in wrappers:
        holders = [adapter for adapter in adapters if adapter in wrapper.own_names()]
        if len(holders) > 1:
            raise AdapterError(
                "several of the adapters have their own weights for a module",
                where=name,
                got=", ".join(holders),
                do="combine adapters of which at most one has it in modules_to_save or in "
                "trainable_token_indices",
            )
        for holder in holders:
            for suffix, tensor in wrapper.own_tensors(holder).items():
                tensors[f"{PREFIX}{name}.{suffix}"] = tensor.detach().clone()
    return tensors


def _with_targets(
    model: nn.Module, config: LoraConfig, configs: Sequence[LoraConfig], touched: list[str]
) -> LoraConfig:
    """`config` with the targets of all `configs`; by full names where these mean other layers."""
    wanted = [each.target_modules for each in configs]
    if all(isinstance(each, tuple) for each in wanted):
        names = [name for each in wanted for name in each or ()]
        together: object = tuple(dict.fromkeys(names))
    else:
        together = "|".join(f"({each})" for each in wanted)
    short = config.model_copy(update={"target_modules": together})
    is_one_kind = len({type(each) for each in wanted}) == 1
    if is_one_kind:
        meant = [target.name for target in find_targets(model, short, strict=False)]
        if meant == touched:
            return short
    return config.model_copy(
        update={
            "target_modules": tuple(touched),
            "exclude_modules": None,
            "layers_to_transform": None,
            "layers_pattern": None,
        }
    )


def _with_exceptions(
    values: Mapping[str, _Number],
) -> tuple[_Number, dict[str, _Number]]:
    """The most frequent value, and a pattern for every layer that has another."""
    ((most, _),) = Counter(values.values()).most_common(1)
    return most, {f"^{re.escape(name)}": value for name, value in values.items() if value != most}


def _tidy(value: float) -> float:
    """A whole number as one, as people write an alpha."""
    return int(value) if float(value).is_integer() else value
