"""What a model folder in 4 bits is made of, and how far its weights are from the original's.

Read from the files as they are, in the layout of bitsandbytes; no model is built. How far: for
each kind of layer the relative error ‖W − Ŵ‖ / ‖W‖ of one weight from the middle of the model,
which tells a faulty tensor or a poor choice of settings in a second. What it does to the
model's answers only an evaluation tells.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ince.formats.bitsandbytes import packed_names, read_packed
from ince.formats.bitsandbytes_state import decode_state
from ince.lora.insight.layer_kinds import customary, kinds_of, layer_number
from ince.models.source import SafetensorsSource, TensorSource, tensor_runs
from ince.ops import dequantize_4bit, dequantize_absmax

__all__ = ["PackedKind", "QuantizedFolder", "describe_quantized"]

_NUM_KEPT_NAMED = 4
# Weights compared at a time; a multiple of every block size.
_RUN = 1 << 22


@dataclass(frozen=True)
class PackedKind:
    """Packed weights that have the same place in their layers.

    Attributes:
        name: such as ``q_proj``.
        num_tensors: of the kind.
        num_weights: in them.
        num_bytes: of their codes, scales and descriptions.
        relative_error: ‖W − Ŵ‖ / ‖W‖ of `measured`; None where the original has no such tensor.
        measured: name of the weight from the middle of the model.
        is_stack: whether these are the fused experts of a mixture, of which bitsandbytes' own
            layers know nothing: then ince alone reads the folder.
    """

    name: str
    num_tensors: int
    num_weights: int
    num_bytes: int
    relative_error: float | None
    measured: str
    is_stack: bool


@dataclass(frozen=True)
class QuantizedFolder:
    """The weights of a folder.

    Attributes:
        kinds: what is packed.
        num_packed: weights in them.
        packed_bytes: of them.
        num_kept: weights that stay as they were: embeddings, norms, biases, mostly the head.
        kept_bytes: of these.
        kept: names of the tensors that are most of them, largest first.
        file_bytes: of the weight files, their headers included.
    """

    kinds: tuple[PackedKind, ...]
    num_packed: int
    packed_bytes: int
    num_kept: int
    kept_bytes: int
    kept: tuple[str, ...]
    file_bytes: int

    @property
    def bits_per_packed_weight(self) -> float:
        """Codes, scales and descriptions."""
        return 8 * self.packed_bytes / max(1, self.num_packed)

    @property
    def bits_per_weight(self) -> float:
        """Of the whole model."""
        num_bytes = self.packed_bytes + self.kept_bytes
        return 8 * num_bytes / max(1, self.num_packed + self.num_kept)

    def to_dict(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            **asdict(self),
            "bits_per_packed_weight": self.bits_per_packed_weight,
            "bits_per_weight": self.bits_per_weight,
        }


def describe_quantized(folder: Path, original: TensorSource | None) -> QuantizedFolder:
    """Read what a folder in the layout of bitsandbytes holds.

    Args:
        folder: of the model.
        original: the tensors that it was made from; None measures no error.

    Raises:
        CorruptFileError: a file cannot be read.
        QuantError: a packed weight is damaged.
        ModelReferenceError: there are no weights.
    """
    source = SafetensorsSource(folder)
    entries = source.entries
    packed = packed_names(entries)
    parts = {part for names in packed.values() for part in names}
    kept = [name for name in entries if name not in parts]
    kept.sort(key=lambda name: entries[name].num_bytes, reverse=True)
    sizes = {name: sum(entries[part].num_bytes for part in packed[name]) for name in packed}
    kept_bytes = sum(entries[name].num_bytes for name in kept)
    kinds = _kinds(source, packed, sizes, original)
    return QuantizedFolder(
        kinds=kinds,
        num_packed=sum(kind.num_weights for kind in kinds),
        packed_bytes=sum(sizes.values()),
        num_kept=sum(torch.Size(entries[name].shape).numel() for name in kept),
        kept_bytes=kept_bytes,
        kept=tuple(
            name for name in kept[:_NUM_KEPT_NAMED] if 10 * entries[name].num_bytes > kept_bytes
        ),
        file_bytes=sum(path.stat().st_size for path in source.files),
    )


def _kinds(
    source: SafetensorsSource,
    packed: Mapping[str, tuple[str, ...]],
    sizes: Mapping[str, int],
    original: TensorSource | None,
) -> tuple[PackedKind, ...]:
    kind_of = kinds_of(name.removesuffix(".weight") for name in packed)
    of_kind: dict[str, list[str]] = {}
    for name in packed:
        of_kind.setdefault(kind_of[name.removesuffix(".weight")], []).append(name)
    kinds: list[PackedKind] = []
    for kind in sorted(of_kind, key=customary):
        names = sorted(of_kind[kind], key=_in_depth)
        middle = names[len(names) // 2]
        shapes = [_shape(source, packed[name]) for name in names]
        kinds.append(
            PackedKind(
                name=kind,
                num_tensors=len(names),
                num_weights=sum(shape.numel() for shape in shapes),
                num_bytes=sum(sizes[name] for name in names),
                relative_error=_relative_error(source, middle, packed[middle], original),
                measured=middle,
                is_stack=any(len(shape) > 2 for shape in shapes),
            )
        )
    return tuple(kinds)


def _in_depth(name: str) -> tuple[int, str]:
    number = layer_number(name)
    return (-1 if number is None else number), name


def _shape(source: SafetensorsSource, parts: tuple[str, ...]) -> torch.Size:
    # The codes do not tell: an odd last half of a byte is no weight.
    (state,) = (part for part in parts if ".quant_state." in part)
    return torch.Size(decode_state(state, source.read(state)).shape)


def _relative_error(
    source: SafetensorsSource, name: str, parts: tuple[str, ...], original: TensorSource | None
) -> float | None:
    """‖W − Ŵ‖ / ‖W‖, a few million weights at a time: a weight may be as large as the memory."""
    packed = read_packed(name, {part: source.read(part) for part in parts})
    if original is None or name not in original.entries:
        return None
    if original.entries[name].shape != packed.shape:
        return None
    absmax = packed.absmax
    if packed.nested_absmax is not None and packed.nested_offset is not None:
        absmax = dequantize_absmax(absmax, packed.nested_absmax, packed.nested_offset)
    error = norm = 0.0
    start = 0
    for run in tensor_runs(original, name, _RUN):
        exact, stop = run.float(), start + run.numel()
        expanded = dequantize_4bit(
            packed.packed[start // 2 : (stop + 1) // 2],
            absmax[start // packed.blocksize : -(-stop // packed.blocksize)],
            packed.blocksize,
            exact.shape,
            torch.float32,
            packed.quant_type,
        )
        norm += float(exact.square().sum())
        error += float((exact - expanded).square().sum())
        start = stop
    return math.sqrt(error / norm) if norm > 0 else 0.0
