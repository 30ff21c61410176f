"""`load_adapter`: an adapter's folder, checked in every way before a request sees it.

Servers have accepted adapters and not applied them, applied them at another scale, and followed
paths out of their folder. Here an adapter is taken whole or refused by name: safetensors only, no
file outside of its folder, the bytes of the digest, the base that it was trained on, every tensor
used and every option honored, and in the end a canary (`ince.serve.adapters.canary`).
"""

import stat
from pathlib import Path

import torch

from ince.errors import AdapterError, CorruptFileError, InceError
from ince.files import read_json
from ince.formats.adapter import (
    ADAPTER_FILES,
    BASE_FILE,
    CONFIG_FILE,
    adapter_digest,
    read_base_digest,
)
from ince.lora.base_identity import check_base_digest
from ince.lora.swap.slots import tenant_of
from ince.serve.adapters.canary import check_canary
from ince.serve.adapters.layers import ServedModel
from ince.serve.adapters.pack import pack
from ince.serve.adapters.packed import PackedAdapter
from ince.serve.adapters.patterns import check_patterns

__all__ = ["load_adapter"]


def load_adapter(
    model: ServedModel,
    folder: Path,
    *,
    digest: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> PackedAdapter:
    """Read, check and pack an adapter; the model is left as it is.

    Args:
        model: the base that shall serve it.
        folder: in PEFT's format.
        digest: that the files must have; None takes them as they are.
        dtype: of the packed form.

    Raises:
        InputError: no such folder.
        AdapterError: it is no adapter of this base, or cannot be served.
        ConfigError: its config has options that are not supported.
        CorruptFileError: a file is garbled, or not the one of `digest`.
        ProofError: its canary failed.
    """
    _check_contained(folder)
    try:
        base_digest = read_base_digest(folder)
        check_base_digest(model.model, base_digest, where=folder)
        if (folder / CONFIG_FILE).is_file():
            check_patterns(read_json(folder / CONFIG_FILE), where=folder / CONFIG_FILE)
        tenant, config = tenant_of(model.model, folder)
        # Of what was read, unless somebody wrote to it meanwhile and back again.
        found = adapter_digest(folder)
    except InceError:
        raise
    except Exception as error:  # a hostile file is no reason to stop serving the others
        raise AdapterError(
            "the adapter cannot be read", where=folder, got=f"{type(error).__name__}: {error}"
        ) from error
    if digest is not None and found != digest:
        raise CorruptFileError(
            "the adapter is not the one that was published",
            where=folder,
            got=f"digest {found}",
            expected=f"digest {digest}",
            do="restore its files, or publish it anew",
        )
    if config.layer_replication:
        raise AdapterError(
            "an adapter of replicated layers needs a deeper base and cannot be served",
            where=folder,
            got=f"layer_replication {config.layer_replication}",
            do="merge it into its base, and serve that",
        )
    packed = pack(model, tenant, config, digest=found, dtype=dtype, where=folder)
    check_canary(model, packed, tenant, where=folder)
    return packed


def _check_contained(folder: Path) -> None:
    """Whether the adapter's files are plain files of its own.

    Raises:
        AdapterError: one is a link that leads out of the folder, a device or a pipe.
    """
    try:
        home = folder.resolve(strict=True)
    except (OSError, RuntimeError):
        return  # there is no such folder, which the reader says
    for name in (*ADAPTER_FILES, BASE_FILE):
        path = folder / name
        try:
            real = path.resolve(strict=True)
            is_plain = stat.S_ISREG(real.stat().st_mode)
        except (OSError, RuntimeError):
            continue  # it is missing, which the reader says
        if real.parent != home or not is_plain:
            raise AdapterError(
                "an adapter's files must lie in its folder",
                where=path,
                got="a link out of it" if is_plain else "no plain file",
                do="copy the files themselves, as `ince registry put` does",
            )
