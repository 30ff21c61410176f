"""`Routing`: which adapter each row of a batch takes, worked out once per call.

Every adapted layer of a model sees the same rows, but not in the same shape: a layer's input has
B rows, or B · k when a model flattens (B, L) to tokens or a beam search repeats each row k times
(both keep a request's rows together). What a layer needs is a `RowPlan`; a model has a few of
them, so they are kept.

A plan knows the rows in two orders:

- as they come, in *runs*: neighbors of one adapter, which are views of the input;
- sorted by adapter, in *segments*: one for each adapter, which a gather puts together.
"""

import itertools
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from ince.errors import AdapterError, did_you_mean

__all__ = ["BASE", "Routing", "RowIndex", "RowPlan", "Span"]

BASE = "__base__"
"""In place of an adapter's name: this row is the base's alone."""


class Span(NamedTuple):
    """Rows start ≤ n < stop of one adapter, by its place in the plan; None is the base."""

    adapter: int | None
    start: int
    stop: int


class RowIndex(NamedTuple):
    """A plan's sorted order as index tensors (int64), for G adapters and segments padded to P.

    Attributes:
        rows: (M,) the rows that have an adapter, sorted by it.
        places: (M,) where each of them lies among the G · P padded places.
        padded: (G · P,) the row at each place; row 0 where there is none.
        owners: (N,) the adapter of every row, G for those of the base.
    """

    rows: Tensor
    places: Tensor
    padded: Tensor
    owners: Tensor


class RowPlan:
    """The rows of one layer's input, by adapter.

    Attributes:
        num_rows: N.
        adapters: the G adapters that change rows here, in the order that numbers them.
        runs: all rows as they come, those of the base too.
        segments: the sorted rows, one span for each adapter.
        width: P, the rows of the longest segment.
        is_even: every segment has P rows.
        is_sorted: every row has an adapter, and they come in sorted order.
        ways: what `ince.lora.mixed.ways` chose for this plan, by the sizes of the layer.
    """

    __slots__ = (
        "_indices",
        "_owners",
        "_repeats",
        "adapters",
        "is_even",
        "is_sorted",
        "num_rows",
        "runs",
        "segments",
        "ways",
        "width",
    )

    def __init__(self, owners: Sequence[int | None], adapters: tuple[str, ...], k: int) -> None:
        self.num_rows = len(owners) * k
        self.adapters = adapters
        self._owners = tuple(owners)
        self._repeats = k
        self._indices: dict[torch.device, RowIndex] = {}
        self.ways: dict[tuple[object, ...], Any] = {}
        self.runs = _runs(owners, k)
        counts = [0] * len(adapters)
        for owner in owners:
            if owner is not None:
                counts[owner] += k
        self.width = max(counts, default=0)
        self.is_even = all(count == self.width for count in counts)
        self.is_sorted = _is_sorted(owners)
        stops = itertools.accumulate(counts)
        self.segments = tuple(
            Span(g, stop - count, stop)
            for g, (count, stop) in enumerate(zip(counts, stops, strict=True))
        )

    @property
    def num_adapted(self) -> int:
        """M, the rows that have an adapter."""
        return self.segments[-1].stop if self.segments else 0

    def index(self, device: torch.device) -> RowIndex:
        """The sorted order on `device`; made once."""
        found = self._indices.get(device)
        if found is None:
            found = self._indices[device] = self._make_index(device)
        return found

    def _make_index(self, device: torch.device) -> RowIndex:
        k, num_adapters = self._repeats, len(self.adapters)
        everyone = [num_adapters if owner is None else owner for owner in self._owners]
        owners = torch.tensor(everyone, dtype=torch.int64).repeat_interleave(k)
        rows = torch.argsort(owners, stable=True)[: self.num_adapted]
        places = torch.empty_like(rows)
        for g, start, stop in self.segments:
            assert g is not None  # segments are of adapters
            torch.arange(g * self.width, g * self.width + stop - start, out=places[start:stop])
        padded = torch.zeros(num_adapters * self.width, dtype=torch.int64)
        padded[places] = rows
        return RowIndex(*(t.to(device) for t in (rows, places, padded, owners)))


class Routing:
    """An adapter for each of the B rows of a batch.

    Make it with `of`, which checks the names. It is immutable, but for the plans it keeps.

    Attributes:
        names: (B) as given.
        adapters: the distinct ones, in the order in which they first come, without the base.
    """

    __slots__ = ("_plans", "adapters", "names")

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.adapters = tuple(name for name in dict.fromkeys(self.names) if name != BASE)
        self._plans: dict[tuple[int, tuple[str, ...]], RowPlan] = {}

    @classmethod
    def of(
        cls,
        adapter_names: Sequence[str],
        *,
        known: Collection[str],
        num_rows: int | None = None,
    ) -> Self:
        """The routing of a batch.

        Args:
            adapter_names: for each row an adapter's name, or `BASE`.
            known: the adapters of the model.
            num_rows: B, where the caller knows it.

        Raises:
            AdapterError: no names, not one for each row, or one that the model does not have.
        """
        # A string is a sequence of strings, of one letter each.
        if isinstance(adapter_names, str) or not isinstance(adapter_names, Sequence):
            raise AdapterError(
                "adapter_names is not a list",
                got=adapter_names,
                expected=f"a name, or {BASE!r}, for each row of the batch",
            )
        if not adapter_names:
            raise AdapterError("adapter_names is empty", expected="one name for each row")
        for row, name in enumerate(adapter_names):
            if not isinstance(name, str):
                raise AdapterError("an adapter name is not a string", where=f"row {row}", got=name)
            if name != BASE and name not in known:
                raise AdapterError(
                    f"the model has no adapter {name!r}",
                    where=f"adapter_names, row {row}",
                    expected=", ".join((*known, BASE)),
                    do=did_you_mean(name, (*known, BASE)),
                )
        if num_rows is not None and num_rows != len(adapter_names):
            raise AdapterError(
                "adapter_names does not have one name for each row",
                got=len(adapter_names),
                expected=f"{num_rows}, the rows of the batch",
            )
        return cls(adapter_names)

    def rows(self, num_rows: int, adapters: tuple[str, ...] | None = None) -> RowPlan:
        """The plan for a layer's input; made once.

        Args:
            num_rows: B, or B · k where each row of the batch became k rows, kept together.
            adapters: those that change rows in this layer, in the order that shall number them;
                the rows of others are the base's. By default all.

        Raises:
            AdapterError: `num_rows` is no multiple of B.
        """
        if adapters is None:
            adapters = self.adapters
        plan = self._plans.get((num_rows, adapters))
        if plan is None:
            plan = self._plans[num_rows, adapters] = self._plan(num_rows, adapters)
        return plan

    def _plan(self, num_rows: int, adapters: tuple[str, ...]) -> RowPlan:
        k, rest = divmod(num_rows, len(self.names))
        if rest:
            raise AdapterError(
                "the rows of a layer's input are not those of the batch",
                got=f"{num_rows} rows",
                expected=f"a multiple of the {len(self.names)} adapter_names",
                do="give one name for each row; or leave this layer out of the adapters, if its "
                "input has no batch dimension in front",
            )
        number = {name: g for g, name in enumerate(adapters)}
        return RowPlan([number.get(name) for name in self.names], adapters, k)


def _runs(owners: Sequence[int | None], k: int) -> tuple[Span, ...]:
    runs: list[Span] = []
    for request, owner in enumerate(owners):
        start, stop = request * k, (request + 1) * k
        if runs and runs[-1].adapter == owner:
            start = runs.pop().start
        runs.append(Span(owner, start, stop))
    return tuple(runs)


def _is_sorted(owners: Sequence[int | None]) -> bool:
    last = 0
    for owner in owners:
        if owner is None or owner < last:
            return False
        last = owner
    return True
