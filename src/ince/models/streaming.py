"""Stored tensors in, finished ones out: in a model's type, on its device, packed where asked.

A tensor is read in runs of a few MiB, and each run is cast, moved and packed before the next is
read. So what is held beside the finished model is a run and its intermediate values, whatever
the size of a tensor. Blocks of scales are flat over a tensor: runs that begin where a block
begins give the codes of the whole, to the bit.

Tensors of several pieces (fused experts) are filled in place as the pieces come.
"""

import math
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ince.errors import QuantError
from ince.formats.bitsandbytes import read_packed
from ince.heap import give_back
from ince.models.layout import Layout, Piece, Target
from ince.models.source import TensorSource, tensor_runs
from ince.ops import BLOCKSIZES, quantize_4bit, quantize_absmax
from ince.quant import NF4Config

__all__ = ["Finished", "stream"]

# Numbers read at a time; a multiple of every block size.
_RUN = 1 << 22
assert _RUN % max(BLOCKSIZES) == 0

# Bytes read between two requests to the C library to return what was freed.
_GIVE_BACK_EVERY = 1 << 28


@dataclass(frozen=True)
class Finished:
    """A tensor of the model as it stays."""

    target: Target
    tensor: Tensor | None
    """In the type of the target; None where it was packed."""
    parts: dict[str, Tensor]
    """The buffers of `Linear4bit`, where it was packed."""
    config: NF4Config | None = None
    """How it was packed."""


def stream(
    source: TensorSource,
    layout: Layout,
    *,
    packed: Container[str],
    config: NF4Config | None,
    device: torch.device,
    skip: Container[str] = (),
    progress: Callable[[str, int, int], None] | None = None,
) -> Iterator[Finished]:
    """Read the tensors of `layout` in the order of the disk; yield each once it is whole.

    Args:
        source: the stored tensors.
        layout: which of them make up which tensor of the model.
        packed: names in the model of the weights to pack.
        config: how; None packs none. Weights that are packed already keep their format, and
            take the type of products from here.
        device: where tensors go, and are packed.
        skip: names in the model that are not wanted; nothing of them is read.
        progress: told ``("loading", done, total)`` in stored bytes.

    Raises:
        QuantError: a weight is not finite, or of a type that cannot be packed.
        CorruptFileError: a file is cut off.
    """
    homes = {piece.stored: (t, piece) for t in layout.targets.values() for piece in t.pieces}
    meter = _Meter(sum(entry.num_bytes for entry in source.entries.values()), progress)
    begun: dict[str, _Building | _Collecting] = {}
    for stored in source.order():
        home = homes.get(stored)
        entry = source.entries[stored]
        if home is None or home[0].name in skip:
            meter.advance(entry.num_bytes)
            continue
        target, piece = home
        building = begun.get(target.name)
        if building is None:
            to_pack = config if target.name in packed else None
            if target.packed_as is not None:
                building = _Collecting(target, source, config, device)
            else:
                building = _Building(target, source, to_pack, device, is_checked=config is not None)
            begun[target.name] = building
        share = entry.num_bytes / max(1, math.prod(entry.shape))
        building.take(piece, lambda count, share=share: meter.advance(count * share))
        if building.is_whole:
            del begun[target.name]
            finished = building.finished()
            del building
            yield finished
            del finished
    meter.finish()


class _Meter:
    """Bytes done; returns freed memory to the system now and then."""

    def __init__(self, total: int, progress: Callable[[str, int, int], None] | None) -> None:
        self._total = total
        self._progress = progress
        self._done = 0.0
        self._given_back = 0.0

    def advance(self, num_bytes: float) -> None:
        self._done += num_bytes
        if self._done - self._given_back >= _GIVE_BACK_EVERY:
            self._given_back = self._done
            give_back()
        if self._progress is not None:
            self._progress("loading", min(round(self._done), self._total), self._total)

    def finish(self) -> None:
        self._done = self._total
        self.advance(0)


class _Building:
    """A tensor of the model, piece by piece."""

    def __init__(
        self,
        target: Target,
        source: TensorSource,
        config: NF4Config | None,
        device: torch.device,
        *,
        is_checked: bool,
    ) -> None:
        """With `is_checked`, floats that stay must be finite too."""
        self._target = target
        self._is_checked = is_checked
        self._source = source
        self._device = device
        self._config = config
        self._num_left = len(target.pieces)
        starts = [_start_of(piece, target.shape) for piece in target.pieces]
        self._packing: _Packing | None = None
        self._tensor: Tensor | None = None
        if config is not None and all(s is not None and s % config.blocksize == 0 for s in starts):
            self._packing = _Packing(target, config, device)
        elif len(target.pieces) > 1:
            self._tensor = torch.empty(target.shape, dtype=target.dtype, device=device)

    @property
    def is_whole(self) -> bool:
        return self._num_left == 0

    def take(self, piece: Piece, count: Callable[[int], None]) -> None:
        """Read a piece; `count` is told the numbers that were read."""
        self._num_left -= 1
        start = _start_of(piece, self._target.shape)
        if self._packing is not None and start is not None:
            for run in tensor_runs(self._source, piece.stored, _RUN):
                self._packing.put(start, run.to(device=self._device, dtype=self._target.dtype))
                start += run.numel()
                count(run.numel())
            return
        if self._tensor is None and self._is_kept_as_stored(piece):
            # A source may give another type than it stores.
            self._tensor = self._source.read(piece.stored).to(self._target.dtype)
            count(self._tensor.numel())
            return
        if self._tensor is None:
            shape = self._target.shape
            self._tensor = torch.empty(shape, dtype=self._target.dtype, device=self._device)
        if start is None:
            stored = self._source.read(piece.stored)
            self._tensor[piece.region].copy_(stored)
            count(stored.numel())
            return
        flat = self._tensor.view(-1)
        for run in tensor_runs(self._source, piece.stored, _RUN):
            flat[start : start + run.numel()].copy_(run)
            start += run.numel()
            count(run.numel())

    def _is_kept_as_stored(self, piece: Piece) -> bool:
        # Then it is read into its place at once, without a buffer in between.
        if self._device.type != "cpu" or piece.region:
            return False
        return self._source.entries[piece.stored].dtype == _STORED_AS.get(self._target.dtype)

    def finished(self) -> Finished:
        """The whole."""
        if self._packing is not None:
            return Finished(self._target, None, self._packing.parts(), self._config)
        tensor = self._tensor
        assert tensor is not None
        if self._config is not None:
            packing = _Packing(self._target, self._config, self._device)
            for number, run in enumerate(tensor.view(-1).split(_RUN)):
                packing.put(number * _RUN, run)
            return Finished(self._target, None, packing.parts(), self._config)
        if self._is_checked and tensor.is_floating_point() and tensor.numel():
            _check_finite(tensor, self._target.name)
        return Finished(self._target, tensor, {})


class _Collecting:
    """A weight that is packed already, part by part."""

    def __init__(
        self,
        target: Target,
        source: TensorSource,
        config: NF4Config | None,
        device: torch.device,
    ) -> None:
        self._target = target
        self._source = source
        self._config = config if config is not None else NF4Config()
        self._device = device
        self._parts: dict[str, Tensor] = {}

    @property
    def is_whole(self) -> bool:
        return len(self._parts) == len(self._target.pieces)

    def take(self, piece: Piece, count: Callable[[int], None]) -> None:
        """Read a part; `count` is told the numbers that were read."""
        self._parts[piece.stored] = part = self._source.read(piece.stored)
        count(part.numel())

    def finished(self) -> Finished:
        """The whole, its parts checked against each other."""
        assert self._target.packed_as is not None
        weight = read_packed(self._target.packed_as, self._parts)
        buffers = {
            "packed": weight.packed,
            "absmax": weight.absmax,
            "nested_absmax": weight.nested_absmax,
            "nested_offset": weight.nested_offset,
        }
        parts = {name: each.to(self._device) for name, each in buffers.items() if each is not None}
        return Finished(self._target, None, parts, weight.config(self._config.compute_dtype))


# What a tensor is stored as that can be read into its place.
_STORED_AS = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


def _start_of(piece: Piece, shape: tuple[int, ...]) -> int | None:
    """Where a region begins in the flat tensor, or None when it is not one run of it."""
    start, stride = 0, math.prod(shape)
    is_open = False  # after a part of an axis, all of the others must follow
    for index, length in zip(piece.region, shape, strict=False):
        stride //= max(length, 1)
        if isinstance(index, int):
            if is_open:
                return None
            start += index * stride
            continue
        first, stop, _ = index.indices(length)
        if is_open and (first, stop) != (0, length):
            return None
        is_open = True
        start += first * stride
    return start


class _Packing:
    """A weight that is packed run by run."""

    def __init__(self, target: Target, config: NF4Config, device: torch.device) -> None:
        self._target = target
        self._config = config
        self._num_weights = math.prod(target.shape)
        num_blocks = -(-self._num_weights // config.blocksize)
        num_bytes = (self._num_weights + 1) // 2
        self._packed = torch.empty((num_bytes, 1), dtype=torch.uint8, device=device)
        self._absmax = torch.empty(num_blocks, dtype=torch.float32, device=device)
        self._num_nan = 0
        self._num_infinite = 0

    def put(self, start: int, run: Tensor) -> None:
        """Pack weights `start` and following; `start` is where a block begins."""
        config = self._config
        stop = start + run.numel()
        try:
            packed, absmax = quantize_4bit(
                run, config.blocksize, config.quant_type, scale_search=config.scale_search
            )
        except QuantError as error:
            num_nan, num_infinite = int(run.isnan().sum()), int(run.isinf().sum())
            if num_nan + num_infinite == 0:
                raise self._named(error) from None
            self._num_nan += num_nan  # the rest is read, so that the message counts them all
            self._num_infinite += num_infinite
            return
        self._packed[start // 2 : (stop + 1) // 2].copy_(packed)
        self._absmax[start // config.blocksize : -(-stop // config.blocksize)].copy_(absmax)

    def parts(self) -> dict[str, Tensor]:
        """The buffers of `Linear4bit`."""
        if self._num_nan + self._num_infinite:
            raise _not_finite(
                self._target.name, self._num_nan, self._num_infinite, self._num_weights
            )
        if not self._config.double_quant:
            return {"packed": self._packed, "absmax": self._absmax}
        try:
            codes, nested, offset = quantize_absmax(self._absmax)
        except QuantError as error:
            raise self._named(error) from None
        return {
            "packed": self._packed,
            "absmax": codes,
            "nested_absmax": nested,
            "nested_offset": offset,
        }

    def _named(self, error: QuantError) -> QuantError:
        return QuantError(
            error.what,
            where=self._target.name,
            got=error.got,
            expected=error.expected,
            do=error.do,
        )


def _check_finite(tensor: Tensor, name: str) -> None:
    # Least and largest carry NaN and infinity along, and need no tensor of the same size.
    low, high = torch.aminmax(tensor)
    if bool(low.isfinite() & high.isfinite()):
        return
    num_nan = num_infinite = 0
    for run in tensor.view(-1).split(_RUN):
        num_nan += int(run.isnan().sum())
        num_infinite += int(run.isinf().sum())
    raise _not_finite(name, num_nan, num_infinite, tensor.numel())


def _not_finite(name: str, num_nan: int, num_infinite: int, num_weights: int) -> QuantError:
    return QuantError(
        f"{num_nan + num_infinite} of {num_weights} weights are not finite",
        where=name,
        got=f"{num_nan} NaN, {num_infinite} infinite",
        expected="finite weights",
        do="the source of these weights is damaged; get it again",
    )
