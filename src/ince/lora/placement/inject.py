"""Put adapters into a model, and carry their tensors in and out by PEFT's names.

Everything is checked before anything is changed: a config or a set of tensors that does not
fit leaves the model as it was.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ince.errors import AdapterError
from ince.lora.config import LoraConfig, PeftConfig
from ince.lora.layers.adapted import Adapted, adapted_modules, outer_modules
from ince.lora.layers.given import GivenTensors
from ince.lora.layers.layer import LoraLayer
from ince.lora.layers.state import AdapterState
from ince.lora.layers.wrapper import Wrapper
from ince.lora.placement.base_rows import with_rows_of_base
from ince.lora.placement.find import Found, find_places, find_places_of
from ince.lora.placement.fused_experts import with_experts_as_saved
from ince.lora.placement.names import check_adapter_name, check_known
from ince.lora.placement.places import LayerPlace, Place
from ince.lora.placement.replication import replicate, restore_layers
from ince.lora.placement.start import found_again, is_found_again, put_base
from ince.lora.placement.tensors import check_tensors
from ince.lora.starts.start import Start

__all__ = [
    "adapter_names",
    "adapter_tensors",
    "delete_adapter",
    "find_places",
    "fitted",
    "inject",
    "inject_tensors",
    "load_adapter_tensors",
    "lora_layers",
    "restore_base",
    "state_of",
    "unwrap_empty",
]


def inject(
    model: nn.Module,
    config: PeftConfig,
    adapter_name: str = "default",
    *,
    state: AdapterState | None = None,
) -> PeftConfig:
    """Freeze `model` and add a new adapter to the modules that `config` means, in place.

    Random numbers are drawn from torch's global generator, in the model's order.

    Args:
        model: the base, with or without other adapters.
        config: of the adapter.
        adapter_name: its name in the model.
        state: what adapted modules share, where the caller holds it.

    Returns:
        The config as resolved: `target_modules` as the list of names that were meant.

    Raises:
        ConfigError: the config does not fit the model.
        AdapterError: there is an adapter of this name already, or the name cannot be used.
    """
    with _deeper(model, config):
        found = find_places_of(model, config, fresh=True)
        places, resolved = found.places, found.config
        trained = _trained(model)
        _inject(model, adapter_name, found, state)
        with _or_as_it_was(model, adapter_name, trained):
            modules = dict(adapted_modules(model))
            for place in places:
                place.start(modules[place.name], adapter_name, resolved)
    return resolved


def inject_tensors(
    model: nn.Module,
    config: PeftConfig,
    tensors: Mapping[str, Tensor],
    adapter_name: str = "default",
    *,
    where: object = None,
    state: AdapterState | None = None,
    may_keep: bool = False,
    requires_grad: bool = True,
) -> PeftConfig:
    """Add an adapter that exists: `inject`, with its weights from `tensors`.

    Args:
        model: the base, with or without other adapters.
        config: of the adapter, as in its file.
        tensors: by PEFT's names, every one of which must be used.
        adapter_name: its name in the model, which is not in the tensors' names.
        where: the file, for messages.
        state: as in `inject`.
        may_keep: whether `tensors` may become the weights, instead of being copied.
        requires_grad: whether the weights take gradients.

    Raises:
        ConfigError, AdapterError: as `inject`; or tensors are missing, left over or of
            another shape. The model is as it was.
    """
    with _deeper(model, config):
        found, tensors, starts = fitted(model, config, tensors, where)
        # Every weight is about to be replaced: no random numbers are needed.
        given = GivenTensors(tensors, may_keep, requires_grad)
        trained = _trained(model)
        taken = _inject(model, adapter_name, found, state, given)
        if starts:
            with _or_as_it_was(model, adapter_name, trained):
                _put_bases(model, adapter_name, starts)
        if len(taken) < len(tensors):
            left = {n: t for n, t in tensors.items() if n not in taken}
            _fill(model, adapter_name, left, given)
    return found.config


def fitted(
    model: nn.Module, config: PeftConfig, tensors: Mapping[str, Tensor], where: object
) -> tuple[Found, dict[str, Tensor], dict[str, Start]]:
    """How an adapter's file fits a model, which is left as it is.

    Args:
        model: the base, with or without other adapters.
        config: of the file. tensors: of the file.
        where: the file, for errors.

    Returns:
        Its places; its tensors by the names that they have here; and, by layer, the starts
        that it had and that the base still tells.

    Raises:
        ConfigError, AdapterError: it does not fit.
    """
    config = with_experts_as_saved(model, config, tensors)
    config, tensors = with_rows_of_base(model, config, tensors, where)
    found = find_places_of(model, config, fresh=False, keys=tensors.keys())
    tensors = found.fitted(tensors)
    check_tensors(_shapes(found.places), tensors, where)
    return found, tensors, _found_again(found.places, config, where)


def _trained(model: nn.Module) -> list[Tensor]:
    """What the first adapter freezes; beside others nothing is frozen any more."""
    if any(True for _ in adapted_modules(model)):
        return []
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@contextlib.contextmanager
def _or_as_it_was(model: nn.Module, adapter_name: str, trained: Sequence[Tensor]) -> Iterator[None]:
    """Inside, an adapter gets its values; when that fails, it is as if it never came.

    Args:
        model: with the adapter in it.
        adapter_name: of the adapter.
        trained: what took gradients before it came.
    """
    bases = [(layer, layer.base_layer) for _, layer in lora_layers(model)]
    try:
        yield
    except BaseException:
        for layer, base in bases:  # LoftQ may have put others in their places
            layer.base_layer = base
        delete_adapter(model, adapter_name)
        for tensor in trained:
            tensor.requires_grad_()
        raise


def _found_again(places: Sequence[Place], config: PeftConfig, where: object) -> dict[str, Start]:
    """By layer, the starts that the file's adapter had and that the base still tells."""
    if not isinstance(config, LoraConfig) or not is_found_again(config, where=where):
        return {}
    found: dict[str, Start] = {}
    for place in places:
        if isinstance(place, LayerPlace):
            start = found_again(place.geometry, place.target.spec, config, name=place.name)
            if start is not None:
                found[place.name] = start
    return found


def _put_bases(model: nn.Module, adapter_name: str, starts: Mapping[str, Start]) -> None:
    layers = dict(lora_layers(model))
    for name, start in starts.items():
        put_base(layers[name], adapter_name, start, name=name)


def load_adapter_tensors(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    adapter_name: str = "default",
    *,
    where: object = None,
) -> None:
    """Overwrite the weights of an adapter that is in the model, as when a run continues.

    Raises:
        AdapterError: no such adapter, or the tensors do not fit; nothing was changed.
    """
    check_known(adapter_name, adapter_names(model))
    live = adapter_tensors(model, adapter_name)
    check_tensors({name: tuple(tensor.shape) for name, tensor in live.items()}, tensors, where)
    _copy_tensors(live, tensors)


def adapter_tensors(model: nn.Module, adapter_name: str = "default") -> dict[str, Tensor]:
    """An adapter's weights by PEFT's names, detached, not copied."""
    return {name: t.detach() for name, t in _live_tensors(model, adapter_name).items()}


def adapter_names(model: nn.Module) -> list[str]:
    """The adapters in a plain model, in the order in which they came."""
    return list(
        dict.fromkeys(
            name for _, adapted in adapted_modules(model) for name in adapted.adapter_names()
        )
    )


def lora_layers(model: nn.Module) -> list[tuple[str, LoraLayer]]:
    """The layers of a plain model that have A and B, by dotted name."""
    return [
        (name, each)
        for name, adapted in adapted_modules(model)
        for each in adapted.chain()
        if isinstance(each, LoraLayer)
    ]


def state_of(model: nn.Module) -> AdapterState:
    """The state that the model's adapted modules share; a new one when there are none."""
    for _, adapted in adapted_modules(model):
        return adapted.state
    return AdapterState()


def delete_adapter(model: nn.Module, adapter_name: str) -> None:
    """Take an adapter out; modules without any adapter left are the base's again."""
    state_of(model).shared.pop(adapter_name, None)
    for _, adapted in list(adapted_modules(model)):
        adapted.delete_adapter(adapter_name)
    unwrap_empty(model)


def unwrap_empty(model: nn.Module) -> None:
    """Make modules without any adapter left the base's again."""
    addresses = _addresses(model)
    for _, adapted in list(adapted_modules(model)):
        left: nn.Module = adapted
        while isinstance(left, Wrapper) and not left.own_names():
            left = left.base_layer
        if isinstance(left, Adapted) and not left.adapter_names():
            left = left.get_base_layer()
        if left is not adapted:
            for address in addresses[id(adapted)]:
                model.set_submodule(address, left)
    if not any(True for _ in adapted_modules(model)):
        restore_layers(model)


def restore_base(model: nn.Module) -> None:
    """Take all adapters out: every module is the base's again."""
    addresses = _addresses(model)
    for _, adapted in list(adapted_modules(model)):
        for address in addresses[id(adapted)]:
            model.set_submodule(address, adapted.get_base_layer())
    restore_layers(model)


@contextlib.contextmanager
def _deeper(model: nn.Module, config: PeftConfig) -> Iterator[None]:
    """Inside, layers are replicated as the config says; they stay so if all goes well."""
    changed = replicate(model, getattr(config, "layer_replication", None))
    try:
        yield
    except BaseException:
        if changed:
            restore_layers(model)
        raise


def _inject(
    model: nn.Module,
    adapter_name: str,
    found: Found,
    state: AdapterState | None = None,
    given: GivenTensors | None = None,
) -> set[str]:
    """Make room, and take what is given; the names of the tensors that are in their place."""
    check_adapter_name(adapter_name)
    there = [module for module in found.modules.values() if isinstance(module, Adapted)]
    if any(adapted.has_adapter(adapter_name) for adapted in there):
        raise AdapterError(
            f"the model has an adapter {adapter_name!r} already",
            do="give this one another name, or delete that one",
        )
    if state is None:
        state = state_of(model)
    if not state.active:
        model.requires_grad_(False)
        state.active = (adapter_name,)
    addresses: dict[int, list[str]] | None = None
    wrapped: dict[str, Adapted] = {}
    taken: set[str] = set()
    try:
        for place in found.places:
            # Another place of this adapter may have wrapped it by now.
            module = wrapped.get(place.name, place.module)
            adapted = place.wrap(module, state)
            if adapted is not module:
                addresses = _addresses(model) if addresses is None else addresses
                for address in addresses[id(place.module)]:
                    model.set_submodule(address, adapted, strict=True)
                wrapped[place.name] = adapted
            taken.update(place.add(adapted, adapter_name, given))
    except BaseException:
        delete_adapter(model, adapter_name)
        raise
    return taken


def _live_tensors(model: nn.Module, adapter_name: str) -> dict[str, Tensor]:
    return {
        name: tensor
        for module_name, adapted in adapted_modules(model)
        for name, tensor in adapted.keyed_tensors(module_name, adapter_name).items()
    }


def _addresses(model: nn.Module) -> dict[int, list[str]]:
    """Every name of each module: one that is used twice must stay one."""
    addresses: dict[int, list[str]] = {}
    for name, module in outer_modules(model, every_name=True):
        addresses.setdefault(id(module), []).append(name)
    return addresses


def _shapes(places: Sequence[Place]) -> dict[str, tuple[int, ...]]:
    return {name: shape for place in places for name, shape in place.shapes().items()}


@torch.no_grad()
def _fill(
    model: nn.Module, adapter_name: str, left: Mapping[str, Tensor], given: GivenTensors
) -> None:
    """Set those of a new adapter's weights that its places did not take themselves."""
    for name, live in _live_tensors(model, adapter_name).items():
        if name not in left:
            continue
        tensor = left[name]
        is_alike = tensor.dtype == live.dtype and tensor.device == live.device
        if isinstance(live, nn.Parameter):  # stored buffers of whole modules take no gradients
            live.requires_grad_(given.requires_grad)
            if given.may_keep and is_alike and tensor.is_contiguous():
                live.data = tensor.detach()
                continue
        live.copy_(tensor)


@torch.no_grad()
def _copy_tensors(live: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in live.items():
        tensor.copy_(tensors[name])
