"""PEFT's adapter folder: `adapter_config.json` and `adapter_model.safetensors`.

This module knows bytes, not models: it gives a config as a plain dictionary and tensors by
name, checked for what can be checked without a base. What a key means and whether it fits
is `ince.lora`'s. Weights in pickle form (`adapter_model.bin`) are refused, since reading a
pickle runs what is in it.

    adapter_config.json          object, indent 2, keys sorted
    adapter_model.safetensors    metadata {"format": "pt"}, floating-point tensors, all finite
    ince.json                    ours, and only where it is known: {"base_digest": "…"}
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from ince.errors import AdapterError, CorruptFileError, InputError
from ince.files import read_json, replace_file, replace_folder, sha256_bytes, sha256_file
from ince.formats.reader import TensorFile, read_tensor_file

__all__ = [
    "ADAPTER_FILES",
    "BASE_FILE",
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "adapter_digest",
    "read_adapter",
    "read_base_digest",
    "write_adapter",
]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
ADAPTER_FILES = (WEIGHTS_FILE, CONFIG_FILE)
BASE_FILE = "ince.json"

_PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")
# How a zip archive (torch.save) and a bare pickle begin.
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80")
_MAX_NAMES_SHOWN = 5


def write_adapter(
    folder: Path,
    config: Mapping[str, object],
    tensors: Mapping[str, Tensor],
    *,
    base_digest: str | None = None,
) -> None:
    """Write an adapter folder, whole.

    A folder that is new, or holds an adapter and nothing else, appears at once; in a folder
    with other files each of them is replaced whole, the weights first.

    Args:
        folder: where to; made when missing.
        config: the content of `adapter_config.json`.
        tensors: by PEFT's names, on any device; written as they are.
        base_digest: of the base's files, where it is known.

    Raises:
        AdapterError: a tensor is not finite: what would be written could not be read.
        DiskFullError: nothing half-written is left.
    """
    folder = Path(folder)
    _check_finite(tensors, tensors.values(), where=folder)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    seen: set[int] = set()
    for name, tensor in plain.items():
        # Tied weights come under each of their names, and the format shares no memory.
        memory = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    content = {
        WEIGHTS_FILE: save(plain, metadata={"format": "pt"}),
        CONFIG_FILE: json.dumps(config, indent=2, sort_keys=True, allow_nan=False).encode(),
    }
    if base_digest is not None:
        content[BASE_FILE] = json.dumps({"base_digest": base_digest}, indent=2).encode()
    own = {*ADAPTER_FILES, BASE_FILE}
    if not folder.exists() or {path.name for path in folder.iterdir()} <= own:
        with replace_folder(folder) as temporary:
            for name, data in content.items():
                (temporary / name).write_bytes(data)
        return
    for name, data in content.items():
        with replace_file(folder / name) as temporary:
            temporary.write_bytes(data)
    if base_digest is None:
        (folder / BASE_FILE).unlink(missing_ok=True)  # of an adapter that was here before


def read_adapter(
    folder: Path, *, digest: str | None = None
) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Read an adapter folder: its config and its tensors, on the CPU.

    Args:
        folder: with the two files of the format.
        digest: of `adapter_digest`, where it is known.

    Raises:
        InputError: no such folder.
        AdapterError: not an adapter, weights in pickle form, or weights that are not finite.
        CorruptFileError: a file is cut off or garbled, or differs from `digest`.
    """
    folder = Path(folder)
    _check_is_adapter(folder)
    if digest is not None and (found := adapter_digest(folder)) != digest:
        raise CorruptFileError(
            "the adapter is not the one that was recorded",
            where=folder,
            got=f"digest {found}",
            expected=f"digest {digest}",
            do="restore the folder, or evaluate the adapter anew",
        )
    config = read_json(folder / CONFIG_FILE)
    found = _read_tensors(folder / WEIGHTS_FILE)
    _check_finite(found.tensors, found.runs, where=folder / WEIGHTS_FILE)
    return config, found.tensors


def read_base_digest(folder: Path) -> str | None:
    """The digest of the base that an adapter folder names, or None.

    Raises:
        CorruptFileError: the file that holds it is garbled.
    """
    path = Path(folder) / BASE_FILE
    if not path.is_file():
        return None
    digest = read_json(path).get("base_digest")
    if digest is not None and not isinstance(digest, str):
        raise CorruptFileError(
            "the digest of the base is no text", where=path, got=digest, do="remove the file"
        )
    return digest


def adapter_digest(folder: Path) -> str:
    """Hex SHA-256 that stands for both files of an adapter folder."""
    folder = Path(folder)
    _check_is_adapter(folder)
    lines = [f"{sha256_file(folder / name)}  {name}\n" for name in sorted(ADAPTER_FILES)]
    return sha256_bytes("".join(lines).encode())


def _check_is_adapter(folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(
            "no such adapter folder",
            where=folder,
            do=f"give the folder that holds {CONFIG_FILE}; of a run it is its adapter/",
        )
    pickles = [name for name in _PICKLES if (folder / name).is_file()]
    if pickles and not (folder / WEIGHTS_FILE).is_file():
        raise _pickle_error(folder / pickles[0])
    missing = [name for name in ADAPTER_FILES if not (folder / name).is_file()]
    if missing:
        inside = folder / "adapter"
        raise AdapterError(
            f"not an adapter: {' and '.join(missing)} missing",
            where=folder,
            expected=" and ".join(ADAPTER_FILES),
            do=f"give {inside}" if (inside / CONFIG_FILE).is_file() else None,
        )


def _pickle_error(path: Path) -> AdapterError:
    return AdapterError(
        "adapter weights in pickle form are not read: loading a pickle runs code",
        where=path,
        expected=WEIGHTS_FILE,
        do="if you trust it, load it in PEFT and save it again with safe_serialization=True",
    )


def _read_tensors(path: Path) -> TensorFile:
    try:
        found = read_tensor_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        with path.open("rb") as stream:
            if stream.read(4).startswith(_PICKLE_STARTS):
                raise _pickle_error(path) from None
        raise CorruptFileError(
            "the adapter's weights cannot be read",
            where=path,
            got=str(error),
            expected="a whole safetensors file",
            do="copy or download the adapter again",
        ) from error
    for name, tensor in found.tensors.items():
        if not tensor.is_floating_point():
            raise AdapterError(
                "an adapter's weights must be floating-point",
                where=f"{path}: {name}",
                got=str(tensor.dtype),
            )
    return found


def _check_finite(tensors: Mapping[str, Tensor], all_of: Iterable[Tensor], *, where: Path) -> None:
    if _sum_is_finite(all_of):
        return
    bad = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        more = f" and {len(bad) - _MAX_NAMES_SHOWN} more" if len(bad) > _MAX_NAMES_SHOWN else ""
        raise AdapterError(
            f"the adapter has NaN or infinite weights in {len(bad)} tensors",
            where=where,
            got=", ".join(bad[:_MAX_NAMES_SHOWN]) + more,
            expected="finite numbers",
            do="use an earlier checkpoint, or train with a lower learning rate",
        )


def _sum_is_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether a sum over all is finite: then all of them are. A large sum says nothing."""
    sums = [tensor.detach().sum(dtype=torch.float32) for tensor in tensors]
    return all(math.isfinite(float(each)) for each in sums)
