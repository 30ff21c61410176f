"""A model folder in 4 bits, written while the original is read: the model is never whole.

    model.safetensors, or model-00001-of-00008.safetensors … and an index
                                packed weights in the layout of bitsandbytes, the rest in 16 bits
    config.json                 that of the original, with the quantization
    tokenizer, templates, …     of the original

Tensors go to disk as they are finished, so that a model of any size is quantized in the memory
of a few MiB. The files are gathered beside the output folder, each written whole. Who runs the
same again after being cut off goes on after the last file; on an error nothing is left.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ince.errors import InputError, ModelReferenceError, OutputError
from ince.files import replace_file, replace_folder, write_json
from ince.formats.bitsandbytes import PackedWeight, write_packed
from ince.formats.bitsandbytes_config import config_to_bitsandbytes
from ince.formats.checkpoint import INDEX_FILE, SINGLE_FILE
from ince.formats.writer import PlannedTensor, write_safetensors
from ince.models.build import weights_to_pack
from ince.models.gguf import MANIFEST as GGUF_MANIFEST
from ince.models.layout import Layout, Target, find_layout
from ince.models.load import are_tied, check_vocabulary, choose_device, load_tokenizer, read_config
from ince.models.opening import empty_model, open_source
from ince.models.packed_manifest import Facts, PackedFolder
from ince.models.packed_shards import Shard, finishing_order, packed_parts_of, spread
from ince.models.quiet import quiet_transformers
from ince.models.reference import ResolvedModel, resolve
from ince.models.source import TensorSource
from ince.models.streaming import Finished, stream
from ince.quant import NF4Config

__all__ = ["save_quantized", "unfinished_folder", "write_quantized"]

Progress = Callable[[str, int, int], None]

MAX_SHARD_BYTES = 5_000_000_000
"""Of the tensors of a file."""

_MARGIN_BYTES = 1 << 26
# The JSON text about a packed weight is filled up with spaces, which readers pass over, so that
# its length is known before its numbers are.
_STATE = ".quant_state."
_STATE_STEP = 64
_LONGEST_NUMBER = -1.1754943508222875e-38
_COPIED_SUFFIXES = {".json", ".jinja", ".model", ".txt", ".tiktoken"}
_COPIED_NAMES = {"LICENSE", "LICENSE.md", "NOTICE"}
_TEMPLATES = "additional_chat_templates"


def save_quantized(
    reference: str | Path | ResolvedModel,
    out: Path,
    quantization: NF4Config,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "auto",
    revision: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
) -> Path:
    """Write a model to a folder in 4 bits, which transformers with bitsandbytes reads too.

    Args:
        reference: a packaged name, folder, GGUF file or hub id; or what `resolve` returned.
        out: the folder; new or empty.
        quantization: NF4 or FP4.
        dtype: of what is not packed.
        device: where weights are packed.
        revision: branch, tag or commit, for a hub id.
        max_shard_bytes: of the tensors of a file.
        progress: told ``(stage, done, total)``; ``quantizing`` counts bytes, as stored.

    Returns:
        `out`.

    Raises:
        ModelReferenceError: no such model, not one that can be read, or quantized already.
        QuantError: a weight is not finite; the layout has no such format.
        OutputError: `out` holds something.
        DiskFullError: too little space; nothing is left.
        CorruptFileError: the model's files are damaged.
    """
    out = Path(out)
    check_output(out)
    if isinstance(reference, ResolvedModel):
        resolved = reference
    else:
        resolved = resolve(reference, revision, convert=False, progress=progress)
    source = open_source(resolved)
    return write_quantized(
        source,
        out,
        quantization,
        dtype=dtype,
        device=device,
        max_shard_bytes=max_shard_bytes,
        progress=progress,
    )


def write_quantized(
    source: TensorSource,
    out: Path,
    quantization: NF4Config,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "auto",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
) -> Path:
    """`save_quantized` for tensors of any source; config and tokenizer are in its folder."""
    check_output(out)
    with quiet_transformers():
        config, stored = read_config(source.folder)
        if stored is not None:
            raise ModelReferenceError(
                "the weights of this model are quantized already",
                where=source.folder,
                got="4 bits of bitsandbytes",
                expected="16-bit or 32-bit weights",
                do="use the original model that this one was made from",
            )
        tokenizer = load_tokenizer(source.folder)
        model = empty_model(config, source, dtype)
        check_vocabulary(model, tokenizer, source.folder)
        packed = weights_to_pack(model, quantization)
        layout = find_layout(model, source, dtype)
    if layout is None or are_tied(model, packed):
        raise ModelReferenceError(
            "the tensors of this model must be converted by transformers, and cannot be streamed",
            where=source.folder,
            do="load it with transformers, save it with save_pretrained, and quantize that copy",
        )
    left_out = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and f"{name}.weight" not in packed
    ]
    writing = _Writing(
        source, layout, packed, quantization, dtype, choose_device(device), max_shard_bytes
    )
    description = config_to_bitsandbytes(quantization, left_out)
    del model
    _write(writing, out, description, progress)
    return out


def check_output(out: Path) -> None:
    """Refuse a folder that holds something, before minutes are spent.

    Raises:
        OutputError: it does, or is a file.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise OutputError(
            "the output folder is not empty" if out.is_dir() else "the output is a file",
            where=out,
            expected="a new or empty folder",
            do="choose another folder, or remove this one",
        )


def unfinished_folder(out: Path) -> Path:
    """Where the finished files of `out` are gathered until it is whole."""
    return out.absolute().with_name(f".{out.absolute().name}.quantizing")


@dataclass(frozen=True)
class _Writing:
    """What is written, and from what."""

    source: TensorSource
    layout: Layout
    packed: frozenset[str]
    config: NF4Config
    dtype: torch.dtype
    device: torch.device
    max_shard_bytes: int

    def shards(self) -> list[Shard]:
        stored = {t.name: self._planned(t) for t in finishing_order(self.source, self.layout)}
        return spread(stored, self.max_shard_bytes)

    def facts(self, shards: list[Shard]) -> Facts:
        """What must be the same for a run that goes on."""
        files = {entry.where for entry in self.source.entries.values()}
        states = [(str(path.resolve()), path.stat()) for path in sorted(files) if path.exists()]
        return {
            "files": [[path, state.st_size, state.st_mtime_ns] for path, state in states],
            "quantization": self.config.model_dump(mode="json"),
            "dtype": str(self.dtype),
            "tensors": [list(shard.targets) for shard in shards],
        }

    def stream(self, skip: frozenset[str], progress: Progress | None) -> Iterator[Finished]:
        def told(_stage: str, done: int, total: int) -> None:
            if progress is not None:
                progress("quantizing", done, total)

        return stream(
            self.source,
            self.layout,
            packed=self.packed,
            config=self.config,
            device=self.device,
            skip=skip,
            progress=told,
        )

    def tensors(self, finished: Finished) -> dict[str, Tensor]:
        """What is stored of a tensor of the model, by name."""
        name = finished.target.name
        if finished.tensor is not None:
            return {name: finished.tensor}
        parts = finished.parts
        weight = PackedWeight(
            packed=parts["packed"],
            absmax=parts["absmax"],
            nested_absmax=parts.get("nested_absmax"),
            nested_offset=parts.get("nested_offset"),
            blocksize=self.config.blocksize,
            quant_type=self.config.quant_type,
            shape=finished.target.shape,
            dtype=self.config.compute_dtype,
        )
        return write_packed(name, weight)

    def _planned(self, target: Target) -> tuple[PlannedTensor, ...]:
        if target.name not in self.packed:
            return (PlannedTensor(target.name, target.shape, target.dtype),)
        buffers = packed_parts_of(target.shape, self.config)
        empty = {part: torch.empty(0, dtype=planned.dtype) for part, planned in buffers.items()}
        if "nested_offset" in empty:
            empty["nested_offset"] = torch.tensor(_LONGEST_NUMBER)
        lengths = {f"{target.name}.{part}": planned.shape for part, planned in buffers.items()}
        lengths[target.name] = lengths.pop(f"{target.name}.packed")
        planned: list[PlannedTensor] = []
        for name, tensor in self.tensors(Finished(target, None, empty, self.config)).items():
            shape = lengths.get(name, tuple(tensor.shape))
            if _STATE in name:
                shape = (-(-shape[0] // _STATE_STEP) * _STATE_STEP,)
            planned.append(PlannedTensor(name, shape, tensor.dtype))
        # Wide numbers first: a map of the file then has each where such numbers may lie.
        return tuple(sorted(planned, key=lambda each: -each.dtype.itemsize))


def _write(
    writing: _Writing, out: Path, description: dict[str, object], progress: Progress | None
) -> None:
    from filelock import FileLock, Timeout

    out = out.absolute()
    gathered = unfinished_folder(out)
    lock = FileLock(gathered.with_name(f"{gathered.name}.lock"))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        raise OutputError(
            "another process is writing this folder",
            where=out,
            do="wait for it, or choose another folder",
        ) from None
    except OSError as error:
        raise InputError(
            f"cannot write here: {error.strerror}",
            where=out,
            do="choose a folder that you may write to",
        ) from error
    try:
        names = _gather(writing, gathered, progress)
        _finish(writing, names, gathered, out, description)
    except Exception:
        # What is wrong will be wrong again. After being stopped, the files are gone on with.
        shutil.rmtree(gathered, ignore_errors=True)
        raise
    except BaseException:
        if not any(gathered.glob("*.safetensors")):  # nothing to go on with
            shutil.rmtree(gathered, ignore_errors=True)
        raise
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


def _gather(
    writing: _Writing, gathered: Path, progress: Progress | None
) -> dict[Path, dict[str, int]]:
    """Write the weights; the files, and the tensors of each with their bytes."""
    shards = writing.shards()
    folder = PackedFolder(gathered, writing.facts(shards), shards, is_hashed=False)
    done = frozenset(name for number in folder.finished for name in shards[number].targets)
    finished = writing.stream(done, progress)
    left = sum(s.num_bytes for number, s in enumerate(shards) if number not in folder.finished)
    folder.begin(left + _MARGIN_BYTES)
    for number, shard in enumerate(shards):
        if number not in folder.finished:
            with replace_file(folder.path_of(number)) as temporary:
                drawn = _drawn(writing, shard, finished)
                write_safetensors(temporary, shard.plan, drawn)
            folder.add(number)
    for _ in finished:  # only the end of it, which is told
        pass
    return {
        folder.path_of(number): {planned.name: planned.num_bytes for planned in shard.plan}
        for number, shard in enumerate(shards)
    }


def _drawn(writing: _Writing, shard: Shard, finished: Iterator[Finished]) -> Iterator[Tensor]:
    for name, planned in shard.targets.items():
        each = next(finished)
        assert each.target.name == name
        stored = writing.tensors(each)
        for part in planned:
            tensor = stored[part.name]
            if _STATE in part.name:
                tensor = torch.full(part.shape, ord(" "), dtype=torch.uint8)
                tensor[: stored[part.name].numel()] = stored[part.name]
            yield tensor


def _finish(
    writing: _Writing,
    names: dict[Path, dict[str, int]],
    gathered: Path,
    out: Path,
    description: dict[str, object],
) -> None:
    """Put the gathered files and all else into the output folder."""
    original = writing.source.folder
    config = json.loads((original / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = description
    config.pop("torch_dtype", None)  # an older name
    config["dtype"] = str(writing.dtype).removeprefix("torch.")
    with replace_folder(out) as folder:
        if len(names) == 1:
            (file,) = names
            file.replace(folder / SINGLE_FILE)
        else:
            where: dict[str, str] = {}
            for number, (file, tensors) in enumerate(names.items(), start=1):
                name = f"model-{number:05d}-of-{len(names):05d}.safetensors"
                file.replace(folder / name)
                where |= dict.fromkeys(tensors, name)
            total = sum(size for tensors in names.values() for size in tensors.values())
            index = {"metadata": {"total_size": total}, "weight_map": where}
            write_json(folder / INDEX_FILE, index)
        write_json(folder / "config.json", config)
        for path in original.iterdir():
            if path.is_file() and _is_copied(path.name):
                shutil.copyfile(path, folder / path.name)
        templates = original / _TEMPLATES
        if templates.is_dir():
            shutil.copytree(templates, folder / _TEMPLATES)
        shutil.rmtree(gathered, ignore_errors=True)


def _is_copied(name: str) -> bool:
    """Whether a file of the original describes the model, and not its weights or itself."""
    if name in ("config.json", GGUF_MANIFEST) or name.endswith(".index.json"):
        return False
    return not name.startswith(".") and (
        Path(name).suffix in _COPIED_SUFFIXES or name in _COPIED_NAMES
    )
