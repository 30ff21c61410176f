"""Where ``bias="all"`` and ``bias="lora_only"`` put biases of an adapter's own."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from ince.lora.config import PeftConfig
from ince.lora.layers.adapted import PREFIX, Adapted, base_of, outer_modules, own_parameters
from ince.lora.layers.biases import OwnBias
from ince.lora.layers.given import GivenTensors
from ince.lora.layers.state import AdapterState
from ince.lora.layers.wrapper import part_of

__all__ = ["BiasPlace", "find_biases", "with_own_names"]


@dataclass
class BiasPlace:
    """A module whose bias is the adapter's own."""

    name: str
    module: nn.Module
    has_factors: bool
    """Whether the adapter has low-rank factors there too; its bias has another name then."""

    @property
    def key(self) -> str:
        """In the adapter's file."""
        return f"{PREFIX}{self.name}.{'base_layer.' if self.has_factors else ''}bias"

    @property
    def other_key(self) -> str:
        """How a file may name it that was written beside other adapters."""
        return f"{PREFIX}{self.name}.{'' if self.has_factors else 'base_layer.'}bias"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The bias."""
        return {self.key: tuple(own_parameters(base_of(self.module))["bias"].shape)}

    def wrap(self, module: nn.Module, state: AdapterState) -> Adapted:
        """An `OwnBias`."""
        return OwnBias.around(module, state)

    def add(
        self,
        adapted: Adapted,
        adapter_name: str,
        given: GivenTensors | None = None,  # noqa: ARG002
    ) -> Collection[str]:
        """The bias, as the base has it."""
        part_of(adapted, OwnBias).add_adapter(adapter_name)
        return ()

    def start(self, adapted: Adapted, adapter_name: str, config: PeftConfig) -> None:
        """It starts as the base's."""


def find_biases(
    model: nn.Module, config: PeftConfig, *, factored: Collection[str], saved: Iterable[str]
) -> list[BiasPlace]:
    """The modules whose biases the config trains, in the model's order.

    Args:
        model: the base, with or without adapters.
        config: of the adapter.
        factored: names of the modules that get low-rank factors.
        saved: names of the modules that are trained whole, biases included.
    """
    kind = getattr(config, "bias", "none")
    if kind == "none":
        return []
    whole = tuple(saved)
    return [
        BiasPlace(name, module, name in factored)
        for name, module in _with_bias(model)
        if (kind == "all" or name in factored) and not _is_in(name, whole)
    ]


def with_own_names(
    tensors: Mapping[str, Tensor], places: Iterable[BiasPlace], saved: Iterable[str]
) -> dict[str, Tensor]:
    """A file's tensors with biases under the names that they have here.

    PEFT trains the base's own biases, and names them by where they lie in the model at the time:
    beside other adapters some have another name, and those of modules that are trained whole
    come up to three times.
    """
    found = dict(tensors)
    for place in places:
        if place.key not in found and place.other_key in found:
            found[place.key] = found.pop(place.other_key)
    for name in saved:
        stem = f"{PREFIX}{name}."
        for key in [key for key in found if key.startswith(stem) and key.endswith(".bias")]:
            inside = key.removeprefix(stem)
            if inside.startswith(("original_module.", "modules_to_save.")):
                del found[key]
    return found


def _with_bias(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in outer_modules(model):
        if name and "bias" in own_parameters(base_of(module)):
            yield name, module


def _is_in(name: str, whole: tuple[str, ...]) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in whole)
