"""Turn a GGUF file into a folder of 16-bit safetensors, once.

transformers reads GGUF, but slowly, and refuses to save what it read. So the file is
read once, written into the cache under its own SHA-256, and loaded from there in a
second afterwards. The copy is written whole or not at all, and two processes that
want the same file at once wait for one conversion.

Quantized GGUF weights (Q4_1, Q8_0, …) are expanded in float32 and rounded once to
bfloat16; float32 weights are rounded too.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ince.errors import InceError, ModelReferenceError
from ince.files import read_json, replace_folder, sha256_file, write_json
from ince.models.cache import cache_folder, file_digest
from ince.models.quiet import quiet_transformers, without_line

__all__ = ["convert_gguf", "is_gguf"]

MANIFEST = "ince-source.json"
_FORMAT = "ince-converted/1"
_BAR = "de-quantizing GGUF"  # in the description of a bar that transformers cannot turn off


def is_gguf(path: Path) -> bool:
    """Whether the file starts as GGUF does."""
    with Path(path).open("rb") as stream:
        return stream.read(4) == b"GGUF"


def convert_gguf(
    source: Path,
    *,
    verify: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Path:
    """The folder with `source` as safetensors, converting when it is not there yet.

    Args:
        source: a GGUF file.
        verify: hash the source and every file of the copy instead of comparing sizes and times.
        progress: told ``("converting", 0, 1)`` before and ``("converting", 1, 1)`` after.

    Raises:
        ModelReferenceError: not a GGUF file, or one that transformers cannot read.
        DiskFullError: the cache has no space; nothing half-written stays.
    """
    from filelock import FileLock

    source = Path(source)
    if not is_gguf(source):
        raise ModelReferenceError(
            "not a GGUF file", where=source, expected="a file that starts with the bytes GGUF"
        )
    digest = file_digest(source, verify=verify)
    target = cache_folder() / "models" / f"gguf-{digest[:32]}"
    if _is_whole(target, digest, verify=verify):
        return target
    _make_folder(target.parent)
    with FileLock(target.with_name(f"{target.name}.lock")):
        # Another process may have finished it while this one waited.
        if not _is_whole(target, digest, verify=verify):
            if progress is not None:
                progress("converting", 0, 1)
            model, tokenizer = _read(source)
            with replace_folder(target) as folder:
                _write(model, tokenizer, folder)
                _write_manifest(folder, source, digest)
            if progress is not None:
                progress("converting", 1, 1)
    return target


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InceError(
            f"the cache of converted models cannot be written to: {error.strerror}",
            where=folder,
            do="set INCE_CACHE to a folder that you may write to",
        ) from error


def _is_whole(target: Path, digest: str, *, verify: bool) -> bool:
    """Whether `target` is a finished copy whose files are as they were written.

    A damaged copy is simply not whole, and is made again.
    """
    try:
        manifest = read_json(target / MANIFEST)
        files = manifest["files"]
        if manifest["format"] != _FORMAT or manifest["sha256"] != digest:
            return False
        if not isinstance(files, dict) or not files:
            return False
        for name, facts in files.items():
            path = target / name
            state = path.stat()
            if state.st_size != facts["size"]:
                return False
            touched = state.st_mtime_ns != facts["changed_ns"]
            if (verify or touched) and sha256_file(path) != facts["sha256"]:
                return False
    except (InceError, OSError, KeyError, TypeError):
        return False
    return True


def _write_manifest(folder: Path, source: Path, digest: str) -> None:
    files = {
        path.name: {
            "size": path.stat().st_size,
            "changed_ns": path.stat().st_mtime_ns,
            "sha256": sha256_file(path),
        }
        for path in sorted(folder.iterdir())
    }
    write_json(
        folder / MANIFEST,
        {"format": _FORMAT, "source": source.name, "sha256": digest, "files": files},
    )


def _read(source: Path) -> tuple[Any, Any]:
    """Model and tokenizer of a GGUF file, as transformers reads them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, name = str(source.parent), source.name
    try:
        with quiet_transformers(), without_line(_BAR):
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
            model = AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=name, dtype=torch.bfloat16
            )
    except ImportError as error:
        raise ModelReferenceError(
            "reading GGUF needs two more packages",
            where=source,
            got=str(error),
            do="pip install gguf accelerate",
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # the reader fails in many ways on a damaged or unknown file
        raise ModelReferenceError(
            "transformers cannot read this GGUF file",
            where=source,
            got=f"{type(error).__name__}: {error}",
            do="the file may be cut off, or its architecture not among those that transformers "
            "converts; use the safetensors form of the model",
        ) from error
    return model, tokenizer


def _write(model: Any, tokenizer: Any, folder: Path) -> None:
    from safetensors.torch import save_file

    config = model.config
    # transformers marks the config as quantized, and would refuse to load the copy.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.architectures = [type(model).__name__]
    tied = set(model.all_tied_weights_keys)
    tensors = {k: v.contiguous() for k, v in model.state_dict().items() if k not in tied}
    with quiet_transformers():
        weights = folder / "model.safetensors"
        save_file(tensors, weights, metadata={"format": "pt"})
        weights.chmod(0o644)  # the library makes it private to its writer
        config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
