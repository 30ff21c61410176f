"""A GGUF file as a model: streamed from the file itself, or from a folder of safetensors made once.

`open_gguf` reads tensor by tensor from the file. `convert_gguf` writes the same tensors as
16-bit safetensors into the cache, under the SHA-256 of the file, for all that wants a model
folder; the copy is loaded in a second afterwards. It is written whole or not at all, and two
processes that want the same file at once wait for one conversion.

Quantized GGUF weights (Q4_1, Q8_0, …) are expanded in float32 and rounded once to bfloat16;
float32 weights are rounded too. The files of architectures that `ince.models.gguf_plan` does
not know are read whole by transformers, and converted in any case.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from ince.errors import InceError, ModelReferenceError
from ince.files import read_json, replace_folder, sha256_file, write_json
from ince.formats.gguf import GGUFFile
from ince.formats.writer import PlannedTensor, write_safetensors
from ince.models.cache import cache_folder, file_digest
from ince.models.gguf_description import BAR, cannot_read, empty_model, read_description
from ince.models.gguf_plan import plan_tensors, why_unplanned
from ince.models.gguf_source import GGUFSource
from ince.models.quiet import quiet_transformers, without_line

__all__ = ["convert_gguf", "is_gguf", "open_gguf"]

MANIFEST = "ince-source.json"
_FORMAT = "ince-converted/1"


def is_gguf(path: Path) -> bool:
    """Whether the file starts as GGUF does."""
    with Path(path).open("rb") as stream:
        return stream.read(4) == b"GGUF"


def open_gguf(
    source: Path, *, dtype: torch.dtype = torch.bfloat16, verify: bool = False
) -> GGUFSource:
    """The model in a GGUF file, to be read tensor by tensor.

    Config and tokenizer are made of its metadata once and kept in the cache.

    Args:
        source: a GGUF file.
        dtype: of every float tensor that is read; bfloat16 equals the converted copy.
        verify: hash the file, and what the cache has of it, whatever their times say.

    Raises:
        ModelReferenceError: not a GGUF file, or one that cannot be read tensor by tensor;
            `convert_gguf` may still read it.
        CorruptFileError: the file is damaged.
    """
    file = GGUFFile(source)
    made: list[Any] = []

    def describe(folder: Path) -> None:
        config, tokenizer = read_description(file)
        made.append(empty_model(file, config))
        _write_description(file, made[0], tokenizer, folder)

    folder = _cached(file.path, "gguf-config", describe, verify=verify)
    if not made:
        from transformers import AutoConfig

        with quiet_transformers():
            config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
        made.append(empty_model(file, config))
    return GGUFSource(file, folder, plan_tensors(file, made[0]), dtype=dtype)


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
        progress: told ``("converting", done, total)``, in bytes of the copy's weights.

    Raises:
        ModelReferenceError: not a GGUF file, or one that transformers cannot read either.
        CorruptFileError: the file is damaged.
        DiskFullError: the cache has no space; nothing half-written stays.
    """
    file = GGUFFile(source)
    return _cached(
        file.path, "gguf", lambda folder: _convert(file, folder, progress), verify=verify
    )


def _cached(source: Path, kind: str, write: Callable[[Path], None], *, verify: bool) -> Path:
    """The cache's folder of this kind for `source`, filled by `write` when it is not there yet."""
    from filelock import FileLock

    digest = file_digest(source, verify=verify)
    target = cache_folder() / "models" / f"{kind}-{digest[:32]}"
    if _is_whole(target, digest, verify=verify):
        return target
    _make_folder(target.parent)
    with FileLock(target.with_name(f"{target.name}.lock")):
        # Another process may have finished it while this one waited.
        if not _is_whole(target, digest, verify=verify):
            with replace_folder(target) as folder:
                write(folder)
                _write_manifest(folder, source, digest)
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


def _convert(
    file: GGUFFile, folder: Path, progress: Callable[[str, int, int], None] | None
) -> None:
    config, tokenizer = read_description(file)
    model = empty_model(file, config)
    if why_unplanned(file, model) is not None:
        model = _read_whole(file, config)
        tied = set(model.all_tied_weights_keys)
        tensors = {k: v for k, v in model.state_dict().items() if k not in tied}
        shapes = {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
        read = tensors.__getitem__
    else:
        plan = plan_tensors(file, model)
        shapes = {name: (tensor.shape, torch.bfloat16) for name, tensor in plan.items()}
        read = GGUFSource(file, folder, plan).read
    # The order that the library of safetensors writes in: wide numbers first, then by name.
    order = sorted(shapes, key=lambda name: (-shapes[name][1].itemsize, name))
    planned = [PlannedTensor(name, *shapes[name]) for name in order]
    drawn = (read(name) for name in order)
    told = _told(drawn, planned, progress)
    # With the alignment, the library's bytes: a copy is the same whoever made it.
    write_safetensors(folder / "model.safetensors", planned, told, alignment=8)
    _write_description(file, model, tokenizer, folder)


def _told(
    tensors: Iterable[torch.Tensor],
    planned: list[PlannedTensor],
    progress: Callable[[str, int, int], None] | None,
) -> Iterable[torch.Tensor]:
    """The tensors, and word of how much was drawn."""
    done, total = 0, sum(tensor.num_bytes for tensor in planned)
    for tensor in tensors:
        if progress is not None:
            progress("converting", done, total)
        yield tensor
        done += tensor.numel() * tensor.element_size()
    if progress is not None:
        progress("converting", done, total)


def _write_description(file: GGUFFile, model: Any, tokenizer: Any, folder: Path) -> None:
    config = model.config
    # transformers marks the config as quantized, and would refuse to load the copy.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.architectures = [type(model).__name__]
    with quiet_transformers():
        config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    _drop_invented_tokens(file, folder / "tokenizer.json")


def _drop_invented_tokens(file: GGUFFile, path: Path) -> None:
    """Take out what transformers adds to the file's tokens, and the model has no rows for.

    It makes every byte-level tokenizer a GPT-2's, with an ``<|endoftext|>`` where there was none.
    """
    tokens: Any = file.metadata.get("tokenizer.ggml.tokens")
    if tokens is None:
        return
    content: dict[str, Any] = read_json(path)
    known = [token for token in content["added_tokens"] if token["id"] < len(tokens)]
    if len(known) < len(content["added_tokens"]):
        write_json(path, content | {"added_tokens": known})


def _read_whole(file: GGUFFile, config: Any) -> Any:
    """The model as transformers reads it, where it can read what is not planned here."""
    from transformers import AutoModelForCausalLM

    try:
        with quiet_transformers(), without_line(BAR):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(file.path.parent),
                gguf_file=file.path.name,
                config=config,
                dtype=torch.bfloat16,
                output_loading_info=True,
            )
    except MemoryError:
        raise
    except Exception as error:
        raise cannot_read(file, error) from error
    model, info = loaded
    # transformers would give these random numbers.
    absent = sorted(set(info.get("missing_keys") or ()) - set(model.all_tied_weights_keys))
    if absent:
        raise ModelReferenceError(
            f"{len(absent)} tensors of the model are not in the GGUF file",
            where=file.path,
            got=", ".join(absent[:5]),
            do="transformers does not read this kind of model from GGUF; use its safetensors form",
        )
    return model
