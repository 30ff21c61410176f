"""`serve_layers`: a model whose linear layers apply another adapter to each row.

Layers keep their place and class: a hook behind each adds what the step's adapters say. So the
model's code, its names and its weights are as they were, an adapter's file is checked against the
plain model, and removing the hooks is all there is to undo.

A layer can have an adapter for each request only if every token of a step passes it once and in
order. That is not so in an expert, or behind a pooling: an adapter there would be applied to other
rows or to none, without a word. So one forward of a few tokens is watched when serving begins;
layers that it did not reach in that way are known by name, and adapters of them refused.
What it saw there also serves as the probe of `ince.serve.adapters.canary`.

Shapes: N rows of the probe, D inputs of a layer.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ince.errors import AdapterError, ModelReferenceError
from ince.lora.layers.adapted import Adapted, outer_modules
from ince.lora.layers.kinds import geometry_of, why_not
from ince.lora.layers.linear import LinearGeometry
from ince.serve.adapters.step import StepAdapters

__all__ = ["ServedLayer", "ServedModel", "serve_layers"]

_NUM_PROBE_ROWS = 5


@dataclass(frozen=True, eq=False)
class ServedLayer:
    """A layer that may have an adapter for each row.

    Attributes:
        index: its number among them.
        name: in the model.
        module: the layer itself.
        geometry: how it multiplies.
        probe_ND: what the base gave it for a few tokens, float32 on the CPU.
    """

    index: int
    name: str
    module: nn.Module
    geometry: LinearGeometry
    probe_ND: Tensor


class ServedModel:
    """A base that serves adapters; `serve_layers` makes it.

    Args:
        model: the base.
        layers: that may have adapters, by their numbers.
        refused: why another layer may not, by its name.
    """

    def __init__(
        self, model: nn.Module, layers: tuple[ServedLayer, ...], refused: Mapping[str, str]
    ) -> None:
        self.model = model
        self.layers = layers
        self.by_name = {layer.name: layer for layer in layers}
        self.device: torch.device = next(model.parameters()).device
        self._refused = refused
        head = _output_layer(model)
        number = next((layer.index for layer in layers if layer.module is head), None)
        self.steps = StepAdapters(len(layers), number)
        self._handles = [
            layer.module.register_forward_hook(_adding(self.steps, layer.index)) for layer in layers
        ]

    def why_not(self, name: str) -> str:
        """Why the layer `name` may not have adapters."""
        return self._refused.get(name, "it is no linear layer of the model")

    def close(self) -> None:
        """Leave the model as it was."""
        self.steps.forget()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def serve_layers(model: nn.Module) -> ServedModel:
    """Let each row of `model` have an adapter of its own, in every linear layer that can.

    Args:
        model: a causal language model of transformers without adapters, in evaluation, with
            attention that needs no step's tables yet.

    Raises:
        AdapterError: the model has adapters already.
        ModelReferenceError: it cannot compute rows of one token.
    """
    modules = dict(outer_modules(model))
    if any(isinstance(module, Adapted) for module in modules.values()):
        raise AdapterError(
            "the base of a server has adapters in it already",
            got=type(model).__name__,
            do="give the plain base, and the adapters to the server",
        )
    geometries: dict[str, LinearGeometry] = {}
    refused: dict[str, str] = {}
    for name, module in modules.items():
        geometry = geometry_of(module)
        if isinstance(geometry, LinearGeometry):
            geometries[name] = geometry
        elif geometry is not None or isinstance(module, nn.Linear):
            refused[name] = f"it {why_not(module)}" if geometry is None else "it is not linear"
    seen = _watched(model, {name: modules[name] for name in geometries})
    layers: list[ServedLayer] = []
    for name, geometry in geometries.items():
        inputs = seen[name]
        if len(inputs) == 1 and inputs[0].shape[0] == _NUM_PROBE_ROWS:
            module = modules[name]
            layers.append(ServedLayer(len(layers), name, module, geometry, inputs[0]))
        else:
            rows = ", ".join(str(each.shape[0]) for each in inputs[:5])
            refused[name] = f"{_NUM_PROBE_ROWS} tokens called it {len(inputs)} times" + (
                f", with {rows} rows" if inputs else ""
            )
    return ServedModel(model, tuple(layers), refused)


@torch.no_grad()
def _watched(model: Any, layers: Mapping[str, nn.Module]) -> dict[str, list[Tensor]]:
    """What each layer takes, (rows, D), call by call, while the model reads a few tokens."""
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}
    device = next(model.parameters()).device
    num_tokens = int(model.get_input_embeddings().num_embeddings)
    # Spread over the vocabulary: experts and routers shall tell them apart.
    tokens = torch.linspace(0, num_tokens - 1, _NUM_PROBE_ROWS, device=device).long()[:, None]
    with contextlib.ExitStack() as inside:
        for name, module in layers.items():
            handle = module.register_forward_hook(_watching(seen[name]))
            inside.callback(handle.remove)
        try:
            model(input_ids=tokens, position_ids=torch.zeros_like(tokens), use_cache=False)
        except Exception as error:  # of a model's own code, which raises what it likes
            raise ModelReferenceError(
                "the model cannot be served: it does not read rows of one token",
                got=f"{type(error).__name__}: {error}",
                expected="a causal language model of transformers",
            ) from error
    return seen


_Hook = Callable[[nn.Module, tuple[Any, ...], Any], Any]


def _watching(seen: list[Tensor]) -> _Hook:
    def watch(_: nn.Module, arguments: tuple[Any, ...], __: Any) -> None:
        # A layer called with names alone is left out, as one that is not called.
        if arguments:
            x: Tensor = arguments[0]
            seen.append(x.detach().reshape(-1, x.shape[-1]).float().cpu())

    return watch


def _adding(steps: StepAdapters, index: int) -> _Hook:
    def add(_: nn.Module, arguments: tuple[Any, ...], y: Any) -> Any:
        return steps.add(index, arguments[0], y)

    return add


def _output_layer(model: nn.Module) -> nn.Module | None:
    get = getattr(model, "get_output_embeddings", None)
    head: object = get() if callable(get) else None
    return head if isinstance(head, nn.Module) else None
