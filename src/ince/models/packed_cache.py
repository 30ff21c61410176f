"""Packed models on disk, so that the second load of a model is a memory map.

    packed/<key>/                     in ince's cache folder; <key> is of the weights' digest, the
                                      quantization and all else that the numbers depend on
        00000.safetensors …           tensors in the order in which loading finishes them
        manifest.json                 what the key is of; size, time and SHA-256 of each file

The files are written while a model loads, each whole. A load that was cut off goes on after the
files that are there. A file that is not as it was written is made again; what has another key is
never read. When a file cannot be written, the load goes on without, after one warning.

Hashing a large model takes as long as reading it. So while its digest is not known, a parallel
thread finds it, and the files lie under a provisional key: paths, sizes and times of the source.

Nothing here depends on the device: packing gives equal bits everywhere.
"""

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread

import torch
from torch import Tensor

from ince.errors import InceError
from ince.files import replace_file, sha256_bytes
from ince.formats.writer import PlannedTensor, write_safetensors
from ince.models.cache import cache_folder, known_digest
from ince.models.layout import Layout, Target
from ince.models.packed_manifest import Facts, PackedFolder, key_of
from ince.models.packed_shards import Shard, finishing_order, packed_parts_of, spread
from ince.models.reference import ResolvedModel
from ince.models.source import TensorSource
from ince.models.streaming import Finished, stream
from ince.quant import NF4Config

__all__ = ["AUTOMATIC_BYTES", "CachedLoad", "load_cached"]

_log = logging.getLogger("ince.models")

AUTOMATIC_BYTES = 1 << 30
"""Models of at least so many stored bytes are cached when nobody says whether to."""

_MAX_SHARD_BYTES = 1 << 30
# Bytes; where tensors begin in a file.
_ALIGNMENT = 64
_FILLING = ".filling"
# Left free beside what is written.
_MARGIN_BYTES = 1 << 28


@dataclass(frozen=True)
class CachedLoad:
    """A load that may be cached; see `stream` for the terms."""

    resolved: ResolvedModel
    source: TensorSource
    layout: Layout
    packed: frozenset[str]
    config: NF4Config | None
    dtype: torch.dtype
    device: torch.device
    progress: Callable[[str, int, int], None] | None = None

    def stream(self, skip: frozenset[str] = frozenset()) -> Iterator[Finished]:
        """The tensors from their source."""
        return stream(
            self.source,
            self.layout,
            packed=self.packed,
            config=self.config,
            device=self.device,
            skip=skip,
            progress=self.progress,
        )

    def config_of(self, target: Target) -> NF4Config | None:
        """How a tensor is packed."""
        return self.config if target.name in self.packed else None

    def shards(self) -> list[Shard]:
        """The files of the cache."""
        stored: dict[str, tuple[PlannedTensor, ...]] = {}
        for target in finishing_order(self.source, self.layout):
            config = self.config_of(target)
            if config is None:
                parts = [PlannedTensor(target.name, target.shape, target.dtype)]
            else:
                named = packed_parts_of(target.shape, config).items()
                parts = [replace(each, name=f"{target.name}.{part}") for part, each in named]
            stored[target.name] = tuple(each for part in parts for each in _aligned(part))
        return spread(stored, _MAX_SHARD_BYTES)

    def weight_files(self) -> list[Path]:
        """What the digest of the weights is of."""
        if self.resolved.source is not None:
            return [self.resolved.source]
        return sorted(self.resolved.folder.glob("*.safetensors"))


def load_cached(load: CachedLoad, put: Callable[[Finished], None]) -> None:
    """Give every tensor to `put`: from the cache where it is there, else from its source.

    Raises:
        InceError: see `stream`. Faults of the cache are none.
    """
    from filelock import FileLock, Timeout

    shards = load.shards()
    facts = _facts(load, shards)
    digest = _known_digest(load)
    if digest is not None and _put_whole(load, shards, {**facts, "weights": digest}, put):
        return
    provisional = {**facts, "files": _states(load.weight_files())}
    room = _folder(provisional)
    try:
        room.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(room.with_name(f"{room.name}.lock"))
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if load.progress is not None:
                load.progress("waiting for another load of this model", 0, 1)
            lock.acquire()
    except OSError as error:
        _warn(room, error)
        _put_all(load.stream(), put)
        return
    try:
        # Another process may have finished it while this one waited.
        digest = _known_digest(load)
        if digest is None or not _put_whole(load, shards, {**facts, "weights": digest}, put):
            _put_and_write(load, shards, facts, provisional, put)
    finally:
        lock.release()


def _folder(facts: Facts) -> Path:
    return cache_folder() / "packed" / key_of(facts)


def _put_whole(
    load: CachedLoad, shards: Sequence[Shard], facts: Facts, put: Callable[[Finished], None]
) -> bool:
    """Put the model from a finished cache; False, and nothing put, where there is none."""
    cached = PackedFolder(_folder(facts), facts, shards)
    if len(cached.finished) < len(shards):
        return False
    for number, shard in enumerate(shards):
        _put_shard(load, shard, cached.tensors(number), put)
    if load.progress is not None:
        total = sum(entry.num_bytes for entry in load.source.entries.values())
        load.progress("loading", total, total)
    return True


def _put_shard(
    load: CachedLoad,
    shard: Shard,
    tensors: Mapping[str, Tensor],
    put: Callable[[Finished], None],
) -> None:
    for name in shard.targets:
        target = load.layout.targets[name]
        config = load.config_of(target)
        if config is None:
            put(Finished(target, tensors[name].to(load.device), {}))
        else:
            parts = packed_parts_of(target.shape, config)
            on_device = {part: tensors[f"{name}.{part}"].to(load.device) for part in parts}
            put(Finished(target, None, on_device, config))


def _put_all(finished: Iterator[Finished], put: Callable[[Finished], None]) -> None:
    for each in finished:
        put(each)


def _put_and_write(
    load: CachedLoad,
    shards: Sequence[Shard],
    facts: Facts,
    provisional: Facts,
    put: Callable[[Finished], None],
) -> None:
    cached = PackedFolder(_folder(provisional), provisional, shards)
    done = [shards[number] for number in sorted(cached.finished)]
    finished = load.stream(frozenset(name for shard in done for name in shard.targets))
    left = sum(shard.num_bytes for shard in shards) - sum(shard.num_bytes for shard in done)
    hashing = _Hashing(load.resolved)
    try:
        try:
            cached.begin(left + _MARGIN_BYTES)
        except (InceError, OSError) as error:
            raise _CacheError(error) from error
        for number, shard in enumerate(shards):
            if number in cached.finished:
                _put_shard(load, shard, cached.tensors(number), put)
            else:
                _write_shard(cached, number, shard, finished, put)
    except _CacheError as error:
        _warn(cached.folder, error.cause)
        shutil.rmtree(cached.folder, ignore_errors=True)
        _put_all(finished, put)
        return
    digest = hashing.result()
    if digest is not None and provisional["files"] == _states(load.weight_files()):
        final = {**facts, "weights": digest}
        with contextlib.suppress(InceError, OSError):
            cached.settle(_folder(final), final)


def _aligned(part: PlannedTensor) -> list[PlannedTensor]:
    """A tensor, and what fills the file up to where the next may begin: maps are used in place."""
    missing = -part.num_bytes % _ALIGNMENT
    if not missing:
        return [part]
    return [part, PlannedTensor(part.name + _FILLING, (missing,), torch.uint8)]


class _Hashing:
    """The digest of a model's weights, found while they are read for another purpose."""

    def __init__(self, resolved: ResolvedModel) -> None:
        self._resolved = resolved
        self._digest: str | None = None
        self._thread = Thread(target=self._run, name="ince-digest", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        # A file that cannot be read is the load's to report.
        with contextlib.suppress(InceError, OSError):
            self._digest = self._resolved.weights_digest

    def result(self) -> str | None:
        self._thread.join()
        return self._digest


class _CacheError(Exception):
    """A file of the cache could not be written."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _write_shard(
    cached: PackedFolder,
    number: int,
    shard: Shard,
    finished: Iterator[Finished],
    put: Callable[[Finished], None],
) -> None:
    """Put and write the next tensors of `finished`, those of a shard."""
    fault: list[BaseException] = []

    def drawn() -> Iterator[Tensor]:
        for name, planned in shard.targets.items():
            try:
                each = next(finished)
                assert each.target.name == name
                put(each)
            except BaseException as error:
                fault.append(error)
                raise
            for part in planned:
                if part.name.endswith(_FILLING):
                    yield torch.zeros(part.shape, dtype=part.dtype)
                else:
                    tensor = each.tensor
                    yield each.parts[part.name[len(name) + 1 :]] if tensor is None else tensor

    path = cached.path_of(number)
    try:
        with replace_file(path) as temporary:
            write_safetensors(temporary, shard.plan, drawn())
        cached.add(number)
    except (InceError, OSError) as error:
        if fault:  # of the model, not of the cache
            raise fault[0] from None
        raise _CacheError(error) from error


def _warn(folder: Path, error: Exception) -> None:
    what = error.what if isinstance(error, InceError) else str(error)
    _log.warning(
        "the packed model is not kept for the next load: %s (%s); set INCE_CACHE to a folder "
        "with more space, or pass cache=False",
        what,
        folder,
    )


def _known_digest(load: CachedLoad) -> str | None:
    """Of the weights, when it takes no reading."""
    with contextlib.suppress(OSError):
        if all(known_digest(path) is not None for path in load.weight_files()):
            return load.resolved.weights_digest
    return None


def _states(paths: Sequence[Path]) -> list[list[object]]:
    states = [(path.resolve(), path.stat()) for path in paths]
    return [[str(path), state.st_size, state.st_mtime_ns] for path, state in states]


def _facts(load: CachedLoad, shards: Sequence[Shard]) -> Facts:
    """What the numbers depend on beside the weights."""
    import transformers

    settings = None
    if load.config is not None:
        # The type of products changes nothing that is stored.
        settings = load.config.model_dump(mode="json", exclude={"compute_dtype"})
    plan = [
        [planned.name, list(planned.shape), str(planned.dtype)]
        for shard in shards
        for planned in shard.plan
    ]
    return {
        "quantization": settings,
        "dtype": str(load.dtype),
        "config": sha256_bytes((load.source.folder / "config.json").read_bytes()),
        "tensors": sha256_bytes(repr(plan).encode()),
        "transformers": transformers.__version__,  # which says how stored tensors are fused
    }
