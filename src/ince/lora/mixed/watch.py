"""`Watch`: whether the tensors of some adapters in a layer are still what they were.

What is kept between calls (stacked factors) must follow every change of the parameters that it
was made from. Torch counts in-place changes, and a pointer tells of new memory; looking at both
takes a microsecond for ten tensors. Two things escape that:

- a parameter or module that was replaced: the dictionaries of the modules are compared;
- changes that torch does not count: through ``.data``, and by its fused optimizers. Sixteen
  values of each tensor are compared, at the first use in every call. A change through ``.data``
  that leaves all of them alone is not noticed.

On devices other than a CPU a comparison of values would wait for the device. There nothing is
taken to be the same in another call.
"""

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Watch"]

_NUM_SAMPLES = 16

# A dictionary, a key in it, and what was found there.
_Link = tuple[dict[str, Any], str, object]


class Watch:
    """What was found in `layer` for `adapter_names`, to be compared with what is there later.

    Args:
        layer: its adapters' tensors lie in module or parameter dictionaries, under the
            adapters' names; what lies elsewhere in it concerns all adapters.
        adapter_names: those to watch.
        with_base: whether the frozen layer matters too, as it does for a norm of its weight.
    """

    __slots__ = ("_links", "_num_tables", "_samples", "_stamp", "_tables", "_tensors", "_views")

    def __init__(
        self, layer: nn.Module, adapter_names: tuple[str, ...], *, with_base: bool
    ) -> None:
        self._links: list[_Link] = []
        self._tensors: list[Tensor] = []
        self._tables: dict[str, Any] = layer._modules
        self._num_tables = len(self._tables)
        specs = vars(layer).get("specs", {})
        self._links += [(specs, name, specs.get(name)) for name in adapter_names]
        for key, table in layer._modules.items():
            self._links.append((self._tables, key, table))
            if table is None or (key == "base_layer" and not with_base):
                continue
            if isinstance(table, nn.ModuleDict):
                for name in adapter_names:
                    self._look_at(table._modules, name)
            elif isinstance(table, nn.ParameterDict):
                for name in adapter_names:
                    self._look_at(table._parameters, name)
            else:
                self._look_into(table)
        # They hold the memory: a pointer to memory given back could come again for another.
        held = [tensor.detach() for tensor in self._tensors]
        self._views = [_sample(tensor) for tensor in held] if self.is_possible else []
        self._samples = torch.cat(self._views) if self._can_compare else None
        self._stamp = self._now() if self.is_possible else []

    @property
    def is_possible(self) -> bool:
        """Whether a change would be noticed: tensors of inference mode do not count theirs."""
        return not any(
            tensor.is_inference() or tensor.is_meta or not tensor.is_contiguous()
            for tensor in self._tensors
        )

    @property
    def requires_grad(self) -> bool:
        """Whether any of the tensors is being trained, as of now."""
        return any(tensor.requires_grad for tensor in self._tensors)

    def is_same(self, *, in_same_call: bool) -> bool:
        """Whether nothing changed since; `in_same_call` spares the comparison of values."""
        if len(self._tables) != self._num_tables or self._stamp != self._now():
            return False
        for table, key, found in self._links:
            if table.get(key) is not found:
                return False
        if in_same_call:
            return True
        return self._samples is not None and torch.equal(torch.cat(self._views), self._samples)

    @property
    def _can_compare(self) -> bool:
        return bool(self._views) and all(view.device.type == "cpu" for view in self._views)

    def _now(self) -> list[int]:
        stamp = [tensor._version for tensor in self._tensors]
        stamp += [tensor.data_ptr() for tensor in self._tensors]
        return stamp

    def _look_at(self, table: dict[str, Any], key: str) -> None:
        found = table.get(key)
        self._links.append((table, key, found))
        if isinstance(found, Tensor):
            self._tensors.append(found)
        elif isinstance(found, nn.Module):
            self._look_into(found)

    def _look_into(self, module: nn.Module) -> None:
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, module._modules)
        for table in tables:
            for key in table:
                self._look_at(table, key)


def _sample(tensor: Tensor) -> Tensor:
    flat = tensor.view(-1)
    # An odd step does not keep to one column of a matrix.
    step = max(1, flat.numel() // _NUM_SAMPLES) | 1
    return flat[::step][:_NUM_SAMPLES]
