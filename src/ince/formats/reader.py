"""Read all tensors of a small safetensors file, each into memory of its own.

safetensors maps the file: a tensor changes when the file is written to in place, and copying it
out of the map takes twice the time of reading it. An adapter is hundreds of small tensors that
stay, and loading one should take milliseconds. So the library checks the header, and the bytes
are read here straight into new tensors, which share no memory: tools that look for shared
storage would take them for tied weights.

Large checkpoints are read one tensor at a time, by `ince.formats.checkpoint`.
"""

import json
import math
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

__all__ = ["read_tensors"]

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU, in the order in which they lie in it.

    Raises:
        SafetensorError: the file is cut off or garbled.
        OSError: it cannot be read.
    """
    with safe_open(path, framework="pt") as file, path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header: dict[str, dict[str, Any]] = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        if header.keys() != set(file.keys()):
            raise SafetensorError("the file changed while it was read")
        tensors: dict[str, Tensor] = {}
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            dtype = _DTYPES.get(entry["dtype"])
            if dtype is None:  # of other types there are few, and the library knows them
                tensors[name] = file.get_tensor(name).clone()
                continue
            stream.seek(8 + length + entry["data_offsets"][0])
            tensors[name] = _read(stream, dtype, entry["shape"])
    return tensors


def _read(stream: BufferedReader, dtype: torch.dtype, shape: list[int]) -> Tensor:
    num_bytes = math.prod(shape) * dtype.itemsize
    data = torch.empty(num_bytes, dtype=torch.uint8)
    if stream.readinto(data.numpy().data) != num_bytes:
        raise SafetensorError("the file ended while it was read")
    return data.view(dtype).view(shape)
