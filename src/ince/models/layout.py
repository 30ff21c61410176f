"""Which stored tensors make up which tensor of a model, before any is read.

A checkpoint may name its tensors in another way than transformers' class, keep an expert's
weights apart that the class holds fused, or store what the class ties. transformers knows these
conversions (``conversion_mapping``); here its table is turned into places: stored tensor →
region of a tensor of the model. So such checkpoints stream like all others.

A weight that bitsandbytes packed is several stored tensors; they make one target, as they are.

What is neither renaming nor putting side by side (permuting, splitting, dequantizing) has no
places: `find_layout` says None, and the caller leaves the model to transformers' loader.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ince.errors import ModelReferenceError
from ince.formats.bitsandbytes import packed_names
from ince.formats.bitsandbytes_state import PackedState, decode_state
from ince.models.source import TensorSource, tensor_runs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Layout", "Piece", "Target", "find_layout"]

_RUN = 1 << 20
_SHOWN = 5


@dataclass(frozen=True)
class Piece:
    """A stored tensor and the region of the model's tensor that it fills."""

    stored: str
    region: tuple[int | slice, ...]
    """An index; ``()`` for all of it."""


@dataclass(frozen=True)
class Target:
    """A parameter or buffer of the model."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    """In the model, or before it is packed."""
    pieces: tuple[Piece, ...]
    packed_as: str | None = None
    """Stored name of a weight that is packed already; its pieces are the parts."""
    packed: PackedState | None = None
    """What is stored about it."""


@dataclass(frozen=True)
class Layout:
    """How a checkpoint becomes a model."""

    targets: Mapping[str, Target]
    """By name in the model: all that it needs, tied copies left out."""
    conversions: tuple[object, ...] = ()
    """Those of transformers that were used; it undoes them in ``save_pretrained``."""


def find_layout(
    model: "PreTrainedModel", source: TensorSource, dtype: torch.dtype
) -> Layout | None:
    """The layout of `source` for `model`, or None where only transformers can convert it.

    Args:
        model: its tensors may be on meta; only names, shapes and types are asked for.
        source: the stored tensors.
        dtype: that the model is loaded in.

    Raises:
        ModelReferenceError: tensors are missing, of another shape, or of no model's part.
    """
    from transformers import conversion_mapping

    wanted: dict[str, torch.Tensor] = model.state_dict()
    tied: dict[str, str] = model.all_tied_weights_keys
    conversions = conversion_mapping.get_model_conversion_mapping(model)
    packed = packed_names(source.entries)
    in_packed = {part for parts in packed.values() for part in parts}
    names = [*packed, *(name for name in source.entries if name not in in_packed)]
    renamed = _renamed(model, names, wanted, conversions)
    if renamed is None:
        return None
    unknown = [n for n in renamed if n not in wanted and not _is_leftover(model, n)]
    missing = [n for n in wanted if n not in renamed and n not in tied]
    if missing and (_may_be_missing(model, missing) or any(t in renamed for t in tied)):
        return None  # what transformers makes up, or ties the other way around
    _refuse(missing, "absent from the weight files", source)
    _refuse(unknown, "in the weight files but not part of the model", source)
    plan = _types(model, dtype)
    targets: dict[str, Target] = {}
    for name, parts in renamed.items():
        if name in wanted:
            shape = tuple(wanted[name].shape)
            stored = [each for of_pattern in parts.stored.values() for each in of_pattern]
            kept = plan.get(name, wanted[name].dtype)
            if not any(each in packed for each in stored):
                pieces = _pieces(name, parts, shape, source)
                targets[name] = Target(name, shape, kept, pieces)
            elif len(stored) > 1 or parts.stacked:
                return None  # scales of scales cannot be fused
            else:
                state = _packed_state(name, packed[stored[0]], shape, source)
                pieces = tuple(Piece(part, ()) for part in packed[stored[0]])
                targets[name] = Target(name, shape, kept, pieces, stored[0], state)
    for name in [name for name in targets if name in tied]:
        if not _is_equal_copy(targets.pop(name), targets.get(tied[name]), source):
            return None
    return Layout(targets, tuple(each for each in conversions if each.was_used()))


@dataclass
class _Parts:
    """Stored tensors of one of the model's, by pattern and in order; fused along these axes."""

    stored: dict[str, list[str]]
    stacked: bool = False
    joined: int | None = None


def _renamed(
    model: "PreTrainedModel",
    names: Iterable[str],
    wanted: Mapping[str, object],
    mapping: Sequence[Any],
) -> dict[str, _Parts] | None:
    """Name in the model → what it is made of; None where a conversion is of another kind."""
    from transformers import core_model_loading

    renamings = [e for e in mapping if isinstance(e, core_model_loading.WeightRenaming)]
    converters = [e for e in mapping if isinstance(e, core_model_loading.WeightConverter)]
    rename = core_model_loading.rename_source_key
    prefix = model.base_model_prefix
    found: dict[str, _Parts] = {}
    for stored in sorted(names, key=core_model_loading.dot_natural_key):
        name, pattern = rename(stored, renamings, converters, prefix, wanted)  # pyright: ignore[reportArgumentType]
        if name not in wanted and stored in wanted:
            name, pattern = rename(stored, [], [], prefix, wanted)  # pyright: ignore[reportArgumentType]
        if pattern is None:
            if name in found:
                return None
            found[name] = _Parts({"": [stored]})
            continue
        converter = next(c for c in converters if pattern in c.source_patterns)
        empty = _fusing(converter)
        if empty is None:
            return None
        parts = found.setdefault(name, empty)
        if pattern not in parts.stored:
            return None
        parts.stored[pattern].append(stored)
    return found


def _fusing(converter: Any) -> _Parts | None:
    """What a conversion does, where it stacks tensors and puts them side by side; else None."""
    operations = [
        (type(each).__name__, getattr(each, "dim", None)) for each in converter.operations
    ]
    patterns: dict[str, list[str]] = {pattern: [] for pattern in converter.source_patterns}
    if len(converter.target_patterns) != 1:
        return None
    match operations:
        case [("MergeModulelist", 0)] if len(patterns) == 1:
            return _Parts(patterns, stacked=True)
        case [("MergeModulelist", 0), ("Concatenate", int(dim))] if dim > 0:
            return _Parts(patterns, stacked=True, joined=dim)
        case [("Concatenate", int(dim))] if dim >= 0:
            return _Parts(patterns, joined=dim)
        case _:
            return None


def _pieces(
    name: str, parts: _Parts, shape: tuple[int, ...], source: TensorSource
) -> tuple[Piece, ...]:
    """Where each stored tensor goes; all regions together are the whole."""
    if not parts.stacked and parts.joined is None:
        (stored,) = parts.stored[""]
        _check_shape(name, stored, shape, source)
        return (Piece(stored, ()),)
    if parts.stacked:
        of_each = [(i, stored) for each in parts.stored.values() for i, stored in enumerate(each)]
        if any(len(each) != shape[0] for each in parts.stored.values()):
            counts = ", ".join(str(len(each)) for each in parts.stored.values())
            raise _unfit(name, source, f"{counts} stored tensors", f"{shape[0]} of each")
    else:
        of_each = [(None, stored) for each in parts.stored.values() for stored in each]
    axis = None if parts.joined is None else parts.joined - parts.stacked
    pieces: list[Piece] = []
    offsets: dict[int | None, int] = {}
    for number, stored in of_each:
        whole = list(shape[1:] if parts.stacked else shape)
        region: list[int | slice] = [] if number is None else [number]
        if axis is not None:
            if axis >= len(whole) or len(source.entries[stored].shape) != len(whole):
                raise _unfit(name, source, source.entries[stored].shape, whole)
            start = offsets.get(number, 0)
            offsets[number] = stop = start + source.entries[stored].shape[axis]
            if stop > whole[axis]:
                raise _unfit(name, source, f"{stop} along axis {axis}", whole)
            whole[axis] = stop - start
            region += [slice(None)] * axis + [slice(start, stop)]
        _check_shape(name, stored, tuple(whole), source)
        pieces.append(Piece(stored, tuple(region)))
    if axis is not None:
        length = shape[parts.joined or 0]
        if any(stop != length for stop in offsets.values()):
            raise _unfit(name, source, sorted(set(offsets.values())), f"{length} along an axis")
    return tuple(pieces)


def _check_shape(name: str, stored: str, shape: tuple[int, ...], source: TensorSource) -> None:
    entry = source.entries[stored]
    if entry.shape != shape:
        raise ModelReferenceError(
            f"the weights do not fit the config: {name} has another shape",
            where=entry.where,
            got=list(entry.shape),
            expected=list(shape),
            do="config.json and the weights belong to different models; get both again",
        )


def _packed_state(
    name: str, parts: Sequence[str], shape: tuple[int, ...], source: TensorSource
) -> PackedState:
    (stored,) = (part for part in parts if ".quant_state." in part)
    state = decode_state(stored, source.read(stored))
    if state.shape != shape:
        raise _unfit(name, source, list(state.shape), list(shape))
    return state


def _unfit(name: str, source: TensorSource, got: object, expected: object) -> ModelReferenceError:
    return ModelReferenceError(
        f"the weights do not fit the config: {name} cannot be put together",
        where=source.folder,
        got=got,
        expected=expected,
        do="config.json and the weights belong to different models; get both again",
    )


def _refuse(names: list[str], what: str, source: TensorSource) -> None:
    if names:
        raise ModelReferenceError(
            f"tensors {what}: {len(names)}",
            where=source.folder,
            got=", ".join(sorted(names)[:_SHOWN]),
            expected="every tensor of the config's architecture, and no other",
            do="config.json and the weights belong to different models; get both again",
        )


def _is_leftover(model: "PreTrainedModel", name: str) -> bool:
    """Whether transformers ignores such a tensor: the class says so, or old versions stored it."""
    buffers = [buffer for buffer, _ in model.named_buffers()]
    patterns = list(model._keys_to_ignore_on_load_unexpected or ())  # pyright: ignore[reportPrivateUsage]
    if any(buffer.endswith("rotary_emb.inv_freq") for buffer in buffers):
        patterns.append(r"rotary_emb\.inv_freq")
    if any(buffer.endswith("position_ids") for buffer in buffers):
        patterns.append(r"(^|\.)position_ids$")
    return any(re.search(pattern, name) for pattern in patterns)


def _may_be_missing(model: "PreTrainedModel", names: list[str]) -> bool:
    patterns = list(model._keys_to_ignore_on_load_missing or ())  # pyright: ignore[reportPrivateUsage]
    return any(re.search(pattern, name) for pattern in patterns for name in names)


def _types(model: "PreTrainedModel", dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Tensors that the class wants in a type of their own, as transformers finds them."""
    from transformers import core_model_loading

    plan: dict[str, torch.dtype] = model._get_dtype_plan(dtype)  # pyright: ignore[reportPrivateUsage]
    if not plan:
        return {}
    pattern, kinds, _ = core_model_loading.build_glob_alternation(list(plan))
    found: dict[str, torch.dtype] = {}
    for name in model.state_dict():
        match = pattern.search(name)
        if match is not None and match.lastgroup is not None:
            found[name] = plan[kinds[match.lastgroup]]
    return found


def _is_equal_copy(copy: Target, original: Target | None, source: TensorSource) -> bool:
    """Whether a tied tensor was stored twice alike. Different ones are not tied after all."""
    if original is None or len(copy.pieces) != 1 or len(original.pieces) != 1:
        return False
    stored = copy.pieces[0].stored, original.pieces[0].stored
    if len({(source.entries[n].dtype, source.entries[n].shape) for n in stored}) != 1:
        return False
    runs = zip(
        (run.clone() for run in tensor_runs(source, stored[0], _RUN)),
        tensor_runs(source, stored[1], _RUN),
        strict=True,
    )
    return all(torch.equal(a, b) for a, b in runs)
