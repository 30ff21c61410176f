"""Names of adapters, and whether one may join: those that are there already have a say."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from torch import nn

from ince.errors import AdapterError
from ince.lora.config import PeftConfig
from ince.lora.layers.adapted import adapted_modules
from ince.lora.placement.names import check_known

__all__ = ["base_name", "check_joins", "check_not_adapted", "known_names", "with_base_name"]

_Config = TypeVar("_Config", bound=PeftConfig)


def check_not_adapted(model: nn.Module) -> None:
    """Refuse a model that has adapters.

    Raises:
        AdapterError: it has.
    """
    if any(True for _ in adapted_modules(model)):
        raise AdapterError(
            "the model is adapted already",
            got=type(model).__name__,
            do="use its add_adapter or load_adapter, call unload() first, or load the base anew",
        )


def check_joins(config: PeftConfig, others: Mapping[str, PeftConfig]) -> None:
    """Refuse an adapter that does not go with `others`, the configs of those that are there.

    Raises:
        AdapterError: it is of another method, or a second one that trains biases of the base.
    """
    if not isinstance(config, PeftConfig):
        raise AdapterError(
            "not the config of an adapter", got=type(config).__name__, expected="a LoraConfig"
        )
    for name, other in others.items():
        if other.peft_type != config.peft_type:
            raise AdapterError(
                "adapters of different methods do not share a model",
                got=config.peft_type,
                expected=f"{other.peft_type}, as {name!r}",
                do="give the adapter a base of its own",
            )
        if _trains_biases(config) and _trains_biases(other):
            raise AdapterError(
                "only one adapter may train biases of the base",
                got=f"bias={getattr(config, 'bias', None)!r}, and {name!r} has them already",
                do="set bias='none'",
            )


def with_base_name(config: _Config, model: nn.Module) -> _Config:
    """`config` with the name of its base, where the model knows it."""
    name = base_name(model)
    return config if name is None else config.model_copy(update={"base_model_name_or_path": name})


def base_name(model: nn.Module) -> str | None:
    """What a transformers model was loaded as."""
    name = getattr(model, "name_or_path", None)
    return name if isinstance(name, str) and name else None


def known_names(names: str | Sequence[str], known: Mapping[str, object]) -> list[str]:
    """`names` as a list without repetitions, all of which are in `known`.

    Raises:
        AdapterError: one is not; or there are none.
    """
    listed = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    for name in listed:
        check_known(name, known)
    if not listed:
        raise AdapterError(
            "no adapter is named",
            expected=", ".join(known),
            do="to use none, call disable_adapter()",
        )
    return listed


def _trains_biases(config: PeftConfig) -> bool:
    return getattr(config, "bias", "none") != "none"
