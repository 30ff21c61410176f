"""Read all tensors of a small safetensors file in one go, each with a storage of its own.

safetensors maps the file: a tensor changes when the file is written to in place, and copying it
out of the map takes twice the time of reading it. An adapter is hundreds of small tensors that
stay, and loading one should take milliseconds. So the library checks the header, and all bytes
are read here into one block. Most of the time goes into getting the system to hand out memory
that was not used before, which several threads do in parallel. Each tensor is a storage of its
own over its part of the block: tools that look for shared storage would take views for tied
weights, and whoever saves one would save all. The block is freed with the last of its tensors.

Large checkpoints are read one tensor at a time, by `ince.formats.checkpoint`.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

__all__ = ["TensorFile", "read_tensor_file", "read_tensors"]

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_MAX_THREADS = 4
_MIN_BYTES_OF_THREAD = 1 << 20


@dataclass(frozen=True)
class TensorFile:
    """What a file holds."""

    tensors: dict[str, Tensor]
    """By name, on the CPU, in the order in which they lie in the file."""
    runs: list[Tensor]
    """The same numbers in few flat tensors, for what is asked of all of them at once."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU, in the order in which they lie in it.

    Raises:
        SafetensorError: the file is cut off or garbled.
        OSError: it cannot be read.
    """
    return read_tensor_file(path).tensors


def read_tensor_file(path: Path) -> TensorFile:
    """`read_tensors`, and the same numbers as few flat tensors.

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
        entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        end = entries[-1][1]["data_offsets"][1] if entries else 0
        block = _read(path, 8 + length, end)
        tensors: dict[str, Tensor] = {}
        runs: list[Tensor] = []
        run_dtype, run_start, run_stop = torch.uint8, 0, 0
        for name, entry in entries:
            dtype = _DTYPES.get(entry["dtype"])
            if dtype is None:  # of other types there are few, and the library knows them
                tensors[name] = file.get_tensor(name).clone()
                runs.append(tensors[name].flatten())
                continue
            start, stop = entry["data_offsets"]
            # In place: a view would be another object to make.
            tensors[name] = _part(block, dtype, start, stop).resize_(entry["shape"])
            if (dtype, start) != (run_dtype, run_stop):
                runs.append(_part(block, run_dtype, run_start, run_stop))
                run_dtype, run_start = dtype, start
            run_stop = stop
        runs.append(_part(block, run_dtype, run_start, run_stop))
    return TensorFile(tensors, [run for run in runs if run.numel()])


def _read(path: Path, start: int, num_bytes: int) -> memoryview:
    block = torch.empty(num_bytes, dtype=torch.uint8).numpy().data
    wanted = min(_MAX_THREADS, os.cpu_count() or 1, num_bytes // _MIN_BYTES_OF_THREAD)
    size = max(1, -(-num_bytes // max(wanted, 1)))

    def read(at: int) -> bool:
        part = block[at : at + size]
        with path.open("rb", buffering=0) as stream:
            stream.seek(start + at)
            while part:
                count = stream.readinto(part)
                if not count:
                    return False
                part = part[count:]
        return True

    first, *others = range(0, num_bytes, size) or (0,)
    if not others:
        is_whole = read(first)
    else:
        with ThreadPoolExecutor(len(others)) as pool:
            futures = [pool.submit(read, at) for at in others]
            is_whole = read(first) and all(future.result() for future in futures)
    if not is_whole:
        raise SafetensorError("the file ended while it was read")
    return block


def _part(block: memoryview, dtype: torch.dtype, start: int, stop: int) -> Tensor:
    count = (stop - start) // dtype.itemsize
    if count == 0:
        return torch.empty(0, dtype=dtype)
    if start % dtype.itemsize == 0:
        return torch.frombuffer(block, dtype=dtype, count=count, offset=start)
    data = torch.frombuffer(block, dtype=torch.uint8, count=stop - start, offset=start)
    return data.clone().view(dtype)
