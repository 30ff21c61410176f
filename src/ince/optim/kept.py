"""What an optimizer that pages keeps of a parameter, read and written by name.

Only a page, or one tensor of a parameter, is in memory at once, however much state there is.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ince.errors import CorruptFileError
from ince.optim.options import check_options
from ince.optim.pages import PageStore
from ince.optim.pages.layout import Piece
from ince.optim.pages.page import Page
from ince.optim.rules import Slot
from ince.optim.stretches import in_order, like

__all__ = [
    "Kept",
    "StateEntry",
    "fill",
    "flat_state",
    "matching_groups",
    "parts_by_parameter",
    "read_slot",
    "step_of",
]


@dataclass(eq=False)
class Kept:
    """A parameter with state: as it was when it got its pages, where they are, its steps."""

    numel: int
    dtype: torch.dtype
    device: torch.device
    slots: tuple[Slot, ...]
    pieces: list[tuple[Page, Piece]] = field(default_factory=list[tuple[Page, Piece]])
    step: int = 0

    def is_of(self, parameter: Tensor) -> bool:
        """The parameter is still as it was."""
        return (parameter.numel(), parameter.dtype, parameter.device) == (
            self.numel,
            self.dtype,
            self.device,
        )


@dataclass(frozen=True)
class StateEntry:
    """A tensor of state that is read when it is asked for."""

    name: str
    """``PARAMETER.exp_avg``."""
    shape: torch.Size
    dtype: torch.dtype
    read: Callable[[], Tensor]
    """The tensor, in memory, and nobody else's."""

    @property
    def num_bytes(self) -> int:
        """Of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_slot(store: PageStore, parameter: Tensor, kept: Kept, slot: Slot) -> Tensor:
    """One tensor of a parameter's state, in memory, as in a state dict.

    Raises:
        CorruptFileError: the file of pages cannot be read.
    """
    flat = torch.empty(slot.numel(kept.numel), dtype=slot.dtype)
    for page, piece in kept.pieces:
        with store.opened(page, write=False) as states:
            _part(flat, slot, piece).copy_(piece.states(states)[slot.name])
    return like(parameter, flat) if slot.per == 1 else flat


def fill(store: PageStore, values: Callable[[Tensor], Mapping[str, Tensor]]) -> None:
    """Write all pages.

    Args:
        store: of pages whose items have parameters as their keys.
        values: of a parameter, by slot, as `flat_state` gives them; asked once for each.

    Raises:
        DiskFullError, CorruptFileError: the file of pages cannot be written.
    """
    held: dict[Tensor, Mapping[str, Tensor]] = {}
    for page in store.pages:
        with store.opened(page, write=True) as states:
            for piece in page.plan.pieces:
                parameter = piece.item.key
                assert isinstance(parameter, Tensor)
                if parameter not in held:
                    held[parameter] = values(parameter)
                views = piece.states(states)
                for slot in piece.item.slots:
                    views[slot.name].copy_(_part(held[parameter][slot.name], slot, piece))
                if piece.start + piece.length == piece.item.numel:
                    del held[parameter]


def flat_state(
    parameter: Tensor, slots: tuple[Slot, ...], state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A parameter's state with each slot as a vector, in the order of the pages."""
    flat: dict[str, Tensor] = {}
    for slot in slots:
        value = state[slot.name].detach()
        if slot.per == 1:
            value = in_order(parameter, value.reshape(parameter.shape))
        flat[slot.name] = value.reshape(-1)
    return flat


def step_of(value: object, where: str) -> int:
    """The number of steps, as some optimizer wrote it.

    Raises:
        CorruptFileError: it is no such number.
    """
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if (
        isinstance(number, bool)
        or not isinstance(number, int | float)
        or not math.isfinite(number)
        or number < 0
        or number != int(number)
    ):
        raise CorruptFileError(
            "an optimizer's count of steps is none", where=where, got=value, expected="0, 1, 2, …"
        )
    return int(number)


def _part(flat: Tensor, slot: Slot, piece: Piece) -> Tensor:
    start = piece.start // slot.per
    return flat[start : start + slot.numel(piece.length)]


def matching_groups(
    state_dict: Mapping[str, Any], groups: list[dict[str, Any]], *, of: str
) -> list[dict[str, Any]]:
    """The groups of a state dict, which has as many parameters in each as the optimizer has."""
    try:
        saved: list[dict[str, Any]] = deepcopy(state_dict["param_groups"])
        sizes = [len(group["params"]) for group in saved]
        _ = state_dict["state"].items()
    except (KeyError, TypeError, AttributeError) as error:
        raise CorruptFileError(
            "not the state dict of an optimizer",
            got=str(error),
            expected="state, and param_groups with params",
        ) from error
    expected = [len(group["params"]) for group in groups]
    if sizes != expected:
        raise CorruptFileError(
            "the state dict is of other groups of parameters", got=sizes, expected=expected
        )
    for group in saved:
        check_options(group, of=of)
    return saved


def parts_by_parameter(
    names: Iterable[str], parameters: Mapping[str, Tensor]
) -> dict[str, list[str]]:
    """Of names such as ``NAME.exp_avg``, the last words for each parameter that has any.

    Raises:
        CorruptFileError: of parameters that there are not.
    """
    parts: dict[str, list[str]] = {}
    for name in names:
        of, _, part = name.rpartition(".")
        parts.setdefault(of, []).append(part)
    unknown = sorted(set(parts) - set(parameters))
    if unknown:
        raise CorruptFileError(
            "optimizer moments of unknown parameters", got=", ".join(unknown[:5])
        )
    return parts
