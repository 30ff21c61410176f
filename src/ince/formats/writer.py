"""Write a safetensors file tensor by tensor, holding one at a time.

The library's own writer wants every tensor at once; a merged model of many gigabytes is
computed as it is written. Names, shapes and types go into the header first.

    8 bytes     length of the header, little-endian
    header      JSON {name: {"dtype", "shape", "data_offsets"}}, padded with spaces so that the
                data begins at a multiple of 64 bytes, or as asked
    data        each tensor's bytes, row-major, little-endian, without gaps

Source: the safetensors format, github.com/huggingface/safetensors.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["PlannedTensor", "write_safetensors"]

_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor that will be written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(
    path: Path,
    plan: Sequence[PlannedTensor],
    tensors: Iterable[Tensor],
    *,
    alignment: int = 64,
) -> None:
    """Write `tensors` to `path`, one for each entry of `plan`, in its order.

    The file is not written whole: give a path inside `files.replace_folder` or
    `files.replace_file`, which also name a full disk.

    Args:
        path: overwritten.
        plan: names, shapes and types, as they go into the header.
        tensors: as planned, on any device; drawn one at a time.
        alignment: of the first byte of data; the library's own writer takes 8.

    Raises:
        ValueError: a tensor is not as planned, or there are more or fewer.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in plan:
        start, end = end, end + entry.num_bytes
        header[entry.name] = {
            "dtype": _DTYPE_NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % alignment)  # so that a map of the file gives aligned tensors
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        for entry, tensor in zip(plan, tensors, strict=True):
            if tuple(tensor.shape) != entry.shape or tensor.dtype != entry.dtype:
                raise ValueError(
                    f"{entry.name}: {tuple(tensor.shape)} {tensor.dtype} is not as planned"
                )
            flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            stream.write(flat.numpy().data)
