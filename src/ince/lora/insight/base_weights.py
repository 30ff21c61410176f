"""The base's weights beside an adapter, read one at a time from its files.

No model is built. A module is found by its name in the checkpoint, or by the longest end of it
that is there once, since a checkpoint may leave out a model's outer names or put others before.
Weights that are not plain floats (packed in 4 bits, float8 with scales elsewhere) are not
guessed at: why a weight cannot be used is said.
"""

from collections import defaultdict
from pathlib import Path
from typing import cast

from torch import Tensor

from ince.files import read_json
from ince.formats.checkpoint import Checkpoint
from ince.lora.insight.layer_update import LayerUpdate

__all__ = ["BaseWeights"]

_FLOATS = ("F16", "BF16", "F32", "F64")
_HEAD = "lm_head"
_TABLES = ("embed_tokens", "wte", "shared", "word_embeddings")


class BaseWeights:
    """Weights of a model's folder, by the names of its modules.

    Args:
        folder: with ``model.safetensors`` or its shards.
        name: how people call the model; its folder when None.

    Raises:
        ModelReferenceError: no safetensors weights there.
        CorruptFileError: they are damaged.
    """

    def __init__(self, folder: Path, *, name: str | None = None) -> None:
        self.folder = Path(folder)
        self.name = str(folder) if name is None else name
        self._checkpoint = Checkpoint(self.folder)
        self._by_end: dict[str, list[str]] = defaultdict(list)
        for name in self._checkpoint.entries:
            parts = name.split(".")
            for start in range(len(parts)):
                self._by_end[".".join(parts[start:])].append(name)
        self._is_tied = _ties_head(self.folder)
        # Experts of one parameter come one after the other.
        self._last: tuple[str, Tensor] | None = None

    def shape(self, module: str) -> tuple[int, ...] | None:
        """Of the weight of `module` as it is stored, or None when it is not found."""
        name = self._find(f"{module}.weight")
        return None if name is None else self._checkpoint.entries[name].shape

    def tensor(self, parameter: str) -> Tensor | None:
        """A float parameter by its dotted name, or None."""
        name = self._find(parameter)
        if name is None or self._checkpoint.entries[name].dtype not in _FLOATS:
            return None
        return self._checkpoint.tensor(name)

    def stored_weight(
        self, layer: LayerUpdate, *, fan_in_fan_out: bool
    ) -> tuple[Tensor, bool] | str:
        """The weight that `layer` updates: as stored, flattened to a matrix.

        Args:
            layer: whose weight it is.
            fan_in_fan_out: whether the config says that linear weights are stored (in, out).

        Returns:
            The matrix and whether it is stored as (D, O); or why there is none.
        """
        name = self._name_of(layer)
        if name is None:
            return "not in the base's files under this name"
        entry = self._checkpoint.entries[name]
        if entry.dtype not in _FLOATS:
            return f"stored as {entry.dtype}, not in plain floats"
        shape = entry.shape[1:] if layer.form == "expert" else entry.shape
        flat = (shape[0], _product(shape[1:])) if len(shape) > 1 else (_product(shape), 1)
        is_swapped = _is_swapped(layer, flat, fan_in_fan_out=fan_in_fan_out)
        if is_swapped is None:
            return f"of shape {entry.shape} in the base, where the update is {layer.shape}"
        if self._last is None or self._last[0] != name:
            self._last = None
            self._last = name, self._checkpoint.tensor(name)
        tensor = self._last[1]
        if layer.expert is not None:
            if layer.expert >= entry.shape[0]:
                return f"of {entry.shape[0]} experts in the base"
            tensor = tensor[layer.expert]
        return tensor.reshape(flat), is_swapped

    def _find(self, parameter: str) -> str | None:
        if parameter in self._checkpoint.entries:
            return parameter
        parts = parameter.split(".")
        # An end without the layer's number could be another layer's.
        last_number = max((n for n, part in enumerate(parts) if part.isdigit()), default=None)
        latest = len(parts) - 2 if last_number is None else last_number - 1
        for start in range(max(0, latest) + 1):
            found = self._by_end.get(".".join(parts[start:]), [])
            if len(found) == 1:
                return found[0]
            if found:
                return None
        if self._is_tied and _HEAD in parts:
            tables = [self._find(f"{table}.weight") for table in _TABLES]
            return next((name for name in tables if name is not None), None)
        return None

    def _name_of(self, layer: LayerUpdate) -> str | None:
        if layer.form != "expert":
            return self._find(f"{layer.module}.weight") or self._find(layer.name)
        named = self._find(layer.name.rpartition("[")[0])
        if named is not None:
            return named
        # Several parameters of one module: the one whose shape it can be, if there is one.
        sides = sorted(layer.shape)
        owned = [
            name
            for name, entry in self._checkpoint.entries.items()
            if (name.startswith(f"{layer.module}.") or f".{layer.module}." in name)
            and len(entry.shape) == 3
            and sorted(entry.shape[1:]) == sides
        ]
        return owned[0] if len(owned) == 1 else None


def _is_swapped(
    layer: LayerUpdate, stored: tuple[int, int], *, fan_in_fan_out: bool
) -> bool | None:
    """Whether a weight stored in this shape is (D, O); None when it is neither, or may be both."""
    straight, swapped = stored == layer.shape, stored == (layer.shape[1], layer.shape[0])
    if layer.form == "embedding":
        return True if swapped else None
    if layer.form == "expert":
        return swapped if straight != swapped else None
    if straight and swapped:
        return fan_in_fan_out
    return swapped if straight or swapped else None


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _ties_head(folder: Path) -> bool:
    """Whether the model's config says that its head is its table of embeddings."""
    path = folder / "config.json"
    if not path.is_file():
        return False
    config = read_json(path)
    text = config.get("text_config")
    parts = [config, cast("dict[str, object]", text) if isinstance(text, dict) else {}]
    return any(part.get("tie_word_embeddings") is True for part in parts)
