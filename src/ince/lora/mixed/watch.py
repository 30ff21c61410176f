"""`Watch`: whether the tensors of some adapters in a layer are still what they were.

What is kept between calls (stacked factors) must follow every change of the parameters that it
was made from. Torch counts in-place changes, and a pointer tells of new memory; looking at both
takes a microsecond for ten tensors. Two things escape that:

- a parameter or module that was replaced: the dictionaries of the modules are compared;
- changes that torch does not count: through ``.data``, and by its fused optimizers. A few values
  of each tensor are compared, at the first use in every call. A change through ``.data`` that
  leaves them all alone is not noticed.

On devices other than a CPU a comparison of values would wait for the device. There nothing is
taken to be the same in another call.
"""

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Watch"]

# Neighbors, from the middle. In a step the tensors have long left the processor's caches, and
# what counts is how much memory and code is touched: values spread over a tensor, or compared by
# operations of torch, took as long as the product.
_SAMPLE_BYTES = 64


class Watch:
    """What was found in `layer` for `adapter_names`, to be compared with what is there later.

    Args:
        layer: its adapters' tensors lie in module or parameter dictionaries, under the
            adapters' names; what lies elsewhere in it concerns all adapters.
        adapter_names: those to watch.
        with_base: whether the frozen layer matters too, as it does for a norm of its weight.

    Attributes:
        is_possible: whether a change would be noticed at all.
    """

    __slots__ = (
        "_addresses",
        "_can_compare",
        "_found",
        "_held",
        "_keys",
        "_num_tables",
        "_samples",
        "_tables",
        "_tensors",
        "_top",
        "_versions",
        "_views",
        "is_possible",
    )

    def __init__(
        self, layer: nn.Module, adapter_names: tuple[str, ...], *, with_base: bool
    ) -> None:
        self._tensors: list[Tensor] = []
        # Side by side and not in tuples: there are hundreds in a layer, and making them in every
        # layer of a model would set off Python's garbage collection, which takes longer than all.
        self._tables: list[dict[str, Any]] = []
        self._keys: list[str] = []
        self._found: list[object] = []
        self._top: dict[str, Any] = _tables_of(layer)[0]
        self._num_tables = len(self._top)
        specs = vars(layer).get("specs", {})
        for name in adapter_names:
            self._link(specs, name)
        for key in self._top:
            self._look_at_table(key, adapter_names, with_base=with_base)
        # Tensors of inference mode do not count their changes.
        self.is_possible = not any(
            tensor.is_inference() or tensor.is_meta or not tensor.is_contiguous()
            for tensor in self._tensors
        )
        seen = self._tensors if self.is_possible else []
        self._versions = [tensor._version for tensor in seen]
        self._addresses = [tensor.data_ptr() for tensor in seen]
        # They hold the memory: a pointer to memory given back could come again for another.
        self._held = [tensor.detach() for tensor in seen]
        self._can_compare = bool(seen) and all(tensor.device.type == "cpu" for tensor in seen)
        self._views = [_sample(tensor) for tensor in self._held] if self._can_compare else []
        self._samples = [bytes(view) for view in self._views]

    @property
    def requires_grad(self) -> bool:
        """Whether any of the tensors is being trained, as of now."""
        return any(tensor.requires_grad for tensor in self._tensors)

    def is_same(self, *, in_same_call: bool) -> bool:
        """Whether nothing changed since; `in_same_call` spares the comparison of values."""
        if len(self._top) != self._num_tables:
            return False
        stamps = zip(self._tensors, self._versions, self._addresses, strict=True)
        for tensor, version, address in stamps:
            if tensor._version != version or tensor.data_ptr() != address:
                return False
        for table, key, found in zip(self._tables, self._keys, self._found, strict=True):
            if table.get(key) is not found:
                return False
        if in_same_call:
            return True
        for view, sample in zip(self._views, self._samples, strict=True):
            if view != sample:
                return False
        return self._can_compare

    def _link(self, table: dict[str, Any], key: str) -> Any:
        found = table.get(key)
        self._tables.append(table)
        self._keys.append(key)
        self._found.append(found)
        return found

    def _look_at_table(self, key: str, adapter_names: tuple[str, ...], *, with_base: bool) -> None:
        table = self._link(self._top, key)
        if table is None or (key == "base_layer" and not with_base):
            return
        if isinstance(table, nn.ModuleDict | nn.ParameterDict):
            modules, parameters, _ = _tables_of(table)
            for name in adapter_names:
                self._look_at(modules if isinstance(table, nn.ModuleDict) else parameters, name)
        else:
            self._look_into(table)

    def _look_at(self, table: dict[str, Any], key: str) -> None:
        found = self._link(table, key)
        if isinstance(found, Tensor):
            self._tensors.append(found)
        elif isinstance(found, nn.Module):
            self._look_into(found)

    def _look_into(self, module: nn.Module) -> None:
        for table in _tables_of(module):
            for key in table:
                self._look_at(table, key)


def _tables_of(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What a module holds: modules, parameters, buffers."""
    own = vars(module)
    return own["_modules"], own["_parameters"], own["_buffers"]


def _sample(tensor: Tensor) -> memoryview:
    values: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    middle = values.size // 2
    return memoryview(values[middle : middle + _SAMPLE_BYTES])
