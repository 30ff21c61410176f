"""A module's forward under a routing: once for each adapter, on its rows of the batch.

For modules that are not a product with low-rank factors (whole copies, experts): there is
nothing that rows of different adapters could share.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ince.errors import AdapterError

if TYPE_CHECKING:
    from ince.lora.mixed.routing import Routing

__all__ = ["by_rows"]


def by_rows(
    routing: "Routing",
    adapter_names: Sequence[str],
    call: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    where: str,
    rest: Any = None,
) -> Any:
    """``call(adapter, *args, **kwargs)`` on the rows of each, put together in their order.

    Rows lie in the first dimension of every tensor that has as many as the first one.

    Args:
        routing: of the batch.
        adapter_names: those that change this module; rows of others go to ``call(None, …)``.
        call: the module's forward with an adapter, or with none.
        args: of the module. kwargs: of the module.
        where: the module, for errors.
        rest: what the module gives where rows of others are right; without it they are called.

    Raises:
        AdapterError: something in the call cannot be divided by rows.
    """
    num_rows = _num_rows([*args, *kwargs.values()], where)
    plan = routing.rows(num_rows, tuple(n for n in routing.adapters if n in adapter_names))
    spans: dict[int | None, list[tuple[int, int]]] = {}
    for owner, start, stop in plan.runs:
        spans.setdefault(owner, []).append((start, stop))
    if len(spans) == 1:
        (owner,) = spans
        if owner is None and rest is not None:
            return rest
        return call(None if owner is None else plan.adapters[owner], *args, **kwargs)
    device = next(v for v in [*args, *kwargs.values()] if isinstance(v, Tensor)).device
    rows, outputs = [], []
    for owner, runs in spans.items():
        mine = torch.cat([torch.arange(start, stop, device=device) for start, stop in runs])
        rows.append(mine)
        if owner is None and rest is not None:
            outputs.append(_taken(rest, mine, num_rows, where))
            continue
        part_args = [_taken(value, mine, num_rows, where) for value in args]
        part_kwargs = {key: _taken(value, mine, num_rows, where) for key, value in kwargs.items()}
        name = None if owner is None else plan.adapters[owner]
        outputs.append(call(name, *part_args, **part_kwargs))
    return _joined(outputs, torch.argsort(torch.cat(rows)), where)


def _num_rows(values: Sequence[Any], where: str) -> int:
    for value in values:
        if isinstance(value, Tensor) and value.ndim > 0:
            return value.shape[0]
    raise AdapterError(
        "a batch of several adapters reaches a module that sees no rows",
        where=where,
        do="use one adapter at a time, or leave this module out of the adapters",
    )


def _taken(value: Any, rows: Tensor, num_rows: int, where: str) -> Any:
    if isinstance(value, Tensor):
        return value.index_select(0, rows) if value.ndim and value.shape[0] == num_rows else value
    if isinstance(value, tuple | list):
        items = cast("Sequence[Any]", value)
        return type(value)(_taken(item, rows, num_rows, where) for item in items)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise AdapterError(
        "a batch of several adapters reaches a module that cannot be divided by rows",
        where=where,
        got=f"a {type(value).__name__} among its inputs",
        do="use one adapter at a time, or leave this module out of the adapters",
    )


def _joined(outputs: Sequence[Any], order: Tensor, where: str) -> Any:
    first = outputs[0]
    if isinstance(first, Tensor):
        joined = torch.cat(list(outputs))
        if joined.shape[0] == order.shape[0]:
            return joined.index_select(0, order)
    elif isinstance(first, tuple | list):
        columns = zip(*outputs, strict=True)
        return type(first)(_joined(column, order, where) for column in columns)
    elif first is None:
        return None
    raise AdapterError(
        "a batch of several adapters reaches a module whose outputs are not its rows",
        where=where,
        got=type(first).__name__,
        do="use one adapter at a time, or leave this module out of the adapters",
    )
