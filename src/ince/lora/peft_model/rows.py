"""``adapter_names``: an adapter for each row of one call.

The routing is set for the length of the call and taken back however it ends, so that no later
call meets the adapters of another. Everything is checked before anything runs.
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ince.errors import AdapterError
from ince.lora.layers.state import AdapterState
from ince.lora.mixed.routing import Routing

__all__ = ["num_rows_of", "routed"]


@contextlib.contextmanager
def routed(
    model: nn.Module,
    state: AdapterState,
    adapter_names: Sequence[str] | None,
    *,
    known: Collection[str],
    merged: Sequence[str],
    num_rows: int | None,
) -> Iterator[None]:
    """Inside, each row has its adapter; without names, the active ones act as usual.

    Args:
        model: the base.
        state: of the model.
        adapter_names: one for each row of the batch; "__base__" for none.
        known: the adapters of the model.
        merged: those that are merged.
        num_rows: of the batch, where it is known.

    Raises:
        AdapterError: unknown names, not one for each row, or a model that cannot route now.
    """
    before = state.routing
    if adapter_names is None:
        if before is None:
            yield
            return
        routing, turn = None, contextlib.nullcontext()
    else:
        _check_can_route(model, state, merged)
        routing = Routing.of(adapter_names, known=known, num_rows=num_rows)
        turn = state.turn
    with turn:
        state.routing = routing
        try:
            yield
        finally:
            state.routing = before


def num_rows_of(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | None:
    """Rows of the batch in a call of `model`, or None where its input is not found."""
    main = getattr(model, "main_input_name", "input_ids")
    for name in (main, "inputs", "input_ids", "inputs_embeds"):
        value = kwargs.get(name)
        if isinstance(value, Tensor) and value.ndim > 0:
            return value.shape[0]
    if args and isinstance(args[0], Tensor) and args[0].ndim > 0:
        return args[0].shape[0]
    return None


def _check_can_route(model: nn.Module, state: AdapterState, merged: Sequence[str]) -> None:
    if state.disabled:
        raise AdapterError(
            "adapter_names says which adapters act, and all are disabled",
            do="leave the argument out, or the disable_adapter() context",
        )
    if merged:
        raise AdapterError(
            "adapter_names does not go with merged adapters, which act on every row",
            got=", ".join(merged),
            do="call unmerge_adapter() first",
        )
    if model.training and torch.is_grad_enabled() and _is_checkpointed(model):
        # Layers are computed again in the backward pass, when the routing is gone.
        raise AdapterError(
            "adapter_names does not go with gradient checkpointing in training",
            do="turn gradient checkpointing off, or train one adapter after the other",
        )


def _is_checkpointed(model: nn.Module) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
