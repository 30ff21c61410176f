"""`AdapterTiers`: adapters on the device, in memory and on disk, and how they move between them.

    device   a number of slots, for adapters that steps may use now
    memory   a budget of bytes, for adapters that a slot may take in one copy
    disk     the folders of a source, read and checked by threads of their own

The least recently used goes first, and never one that is in use. On a CPU a slot is the adapter's
block in memory itself, which costs no copy and is counted once; a GPU copies from pinned memory.
Adapters are known by digest: whatever their names are by now, a slot is never stale.

An adapter that cannot be loaded is remembered as failed for a while, so that a thousand requests
for it cost one reading; the others do not notice. Everything here may be called from any thread.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch

from ince.errors import AdapterError, ConfigError, InceError, Problem
from ince.serve.adapters.layers import ServedModel
from ince.serve.adapters.load import load_adapter
from ince.serve.adapters.packed import PackedAdapter
from ince.serve.adapters.source import AdapterSource
from ince.serve.adapters.step import Segment

__all__ = ["AdapterTiers", "Loader", "TierState", "TierStats"]

TierState = Literal["device", "memory", "loading", "disk", "failed"]
Loader = Callable[[str], PackedAdapter]

_MAX_FAILURES = 1024
_RETRY_SECONDS = 30.0


@dataclass(frozen=True)
class TierStats:
    """Counts since the start, and what is where now.

    Attributes:
        hits: adapters found in a slot when asked for.
        promotions: put into a slot from memory.
        waits: times that no slot, or no memory, was free.
        loads: read from disk. failures: that could not be.
        slot_evictions: taken out of a slot for another. memory_evictions: out of memory.
        load_seconds: of all loads together.
        device: digests in slots, least recently used first. memory: in memory.
        num_loading: that are being read.
        device_bytes: of slots; on a CPU they are part of `memory_bytes`. memory_bytes: in memory.
    """

    hits: int = 0
    promotions: int = 0
    waits: int = 0
    loads: int = 0
    failures: int = 0
    slot_evictions: int = 0
    memory_evictions: int = 0
    load_seconds: float = 0.0
    device: tuple[str, ...] = ()
    memory: tuple[str, ...] = ()
    num_loading: int = 0
    device_bytes: int = 0
    memory_bytes: int = 0


@dataclass
class _Slot:
    adapter: PackedAdapter
    users: int = 0


class AdapterTiers:
    """The adapters of a server.

    Args:
        model: the base that applies them.
        source: their folders, by digest.
        num_slots: adapters on the device at once, and so in one step.
        memory_bytes: of adapters in memory, at most.
        num_loaders: threads that read from disk.
        block_dtype: of the packed form; float32, or bfloat16 at half the bytes.
        load: what reads one instead of `load_adapter`; loaders: what runs it instead of threads
            of this class. For tests.
        clock: seconds.

    Raises:
        ConfigError: a number that cannot be.
    """

    def __init__(
        self,
        model: ServedModel,
        source: AdapterSource,
        *,
        num_slots: int,
        memory_bytes: int,
        num_loaders: int = 1,
        block_dtype: torch.dtype = torch.float32,
        load: Loader | None = None,
        loaders: Executor | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        wrong = [
            Problem(name, f"got {value}", "at least 1")
            for name, value in (
                ("num_slots", num_slots),
                ("memory_bytes", memory_bytes),
                ("num_loaders", num_loaders),
            )
            if value < 1
        ]
        if wrong:
            raise ConfigError("adapters have no place", problems=wrong)
        self.num_slots = num_slots
        self._model = model
        self._budget = memory_bytes
        self._load_one: Loader = load or (
            lambda digest: load_adapter(
                model, source.folder(digest), digest=digest, dtype=block_dtype
            )
        )
        self._clock = clock
        self._shares_memory = model.device.type == "cpu"
        self._lock = threading.RLock()
        self._slots: OrderedDict[str, _Slot] = OrderedDict()
        self._memory: OrderedDict[str, PackedAdapter] = OrderedDict()
        self._loading: set[str] = set()
        self._failed: OrderedDict[str, tuple[InceError, float]] = OrderedDict()
        self._leaving: set[str] = set()
        self._sizes: dict[str, int] = {}
        self._listeners: list[Callable[[], None]] = []
        self._counts: dict[str, int] = dict.fromkeys(
            ("hits", "promotions", "waits", "loads", "failures"), 0
        )
        self._counts |= dict.fromkeys(("slot_evictions", "memory_evictions"), 0)
        self._load_seconds = 0.0
        self._loaders = loaders or ThreadPoolExecutor(
            num_loaders, thread_name_prefix="ince-adapters"
        )

    # ------------------------------------------------------------------------ what is where

    def state(self, digest: str) -> TierState:
        """Where the adapter is; ``failed`` only for a while after it could not be loaded."""
        with self._lock:
            if digest in self._slots:
                return "device"
            if digest in self._memory:
                return "memory"
            if digest in self._loading:
                return "loading"
            return "disk" if self._failure(digest) is None else "failed"

    def error(self, digest: str) -> InceError | None:
        """Why it failed."""
        with self._lock:
            return self._failure(digest)

    def stats(self) -> TierStats:
        """Everything as of now."""
        with self._lock:
            return TierStats(
                **self._counts,
                load_seconds=self._load_seconds,
                device=tuple(self._slots),
                memory=tuple(self._memory),
                num_loading=len(self._loading),
                device_bytes=sum(slot.adapter.num_bytes for slot in self._slots.values()),
                memory_bytes=self._memory_bytes(),
            )

    def listen(self, listener: Callable[[], None]) -> None:
        """Call this, on a thread of the loaders, when an adapter was loaded or could not be."""
        with self._lock:
            self._listeners.append(listener)

    # -------------------------------------------------------------------------------- moving

    def prefetch(self, digest: str) -> None:
        """Begin to load the adapter, unless it is here, on its way, or failed a moment ago."""
        with self._lock:
            if self.state(digest) != "disk":
                return
            if not self._has_room(self._sizes.get(digest, 0)):
                self._counts["waits"] += 1
                return
            self._loading.add(digest)
            self._leaving.discard(digest)
            try:
                self._loaders.submit(self._load, digest)
            except RuntimeError:  # the loaders are closed
                self._loading.discard(digest)

    def acquire(self, digest: str) -> PackedAdapter | None:
        """Hold the adapter in a slot; `release` lets go of it.

        Returns:
            None when it is not in memory, or every slot is in use.
        """
        with self._lock:
            slot = self._slots.get(digest)
            if slot is not None:
                self._counts["hits"] += 1
            else:
                adapter = self._memory.get(digest)
                if adapter is None or not self._free_slot():
                    self._counts["waits"] += 1
                    return None
                slot = self._slots[digest] = _Slot(adapter.on(self._model.device))
                self._counts["promotions"] += 1
            slot.users += 1
            self._slots.move_to_end(digest)
            if digest in self._memory:
                self._memory.move_to_end(digest)
            return slot.adapter

    def release(self, digest: str) -> None:
        """Let go of an adapter that was acquired.

        Raises:
            AdapterError: nobody holds it.
        """
        with self._lock:
            slot = self._slots.get(digest)
            if slot is None or slot.users == 0:
                raise AdapterError("an adapter was released that nobody holds", got=digest)
            slot.users -= 1
            if slot.users == 0 and digest in self._leaving:
                self._drop(digest)

    def forget(self, digest: str) -> None:
        """Let the adapter leave every tier, as soon as nobody uses it; and how it failed."""
        with self._lock:
            self._failed.pop(digest, None)
            self._sizes.pop(digest, None)
            slot = self._slots.get(digest)
            if digest in self._loading or (slot is not None and slot.users):
                self._leaving.add(digest)
            else:
                self._drop(digest)

    def use(
        self, tokens: Sequence[Segment], wanted: Sequence[Segment] | None = None
    ) -> AbstractContextManager[None]:
        """Inside, the model's layers apply these adapters; see `StepAdapters.use`."""
        return self._model.steps.use(tokens, wanted)

    def close(self) -> None:
        """End the loaders, and let go of all adapters."""
        self._loaders.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            self._slots.clear()
            self._memory.clear()
            self._loading.clear()
        self._model.steps.forget()

    # ------------------------------------------------------------------------------- loading

    def _load(self, digest: str) -> None:
        start = time.perf_counter()
        adapter, error = None, None
        try:
            adapter = self._load_one(digest)
            if not self._shares_memory:
                adapter = adapter.pinned()
        except InceError as caught:
            error = caught
        except Exception as caught:  # the request is told, and the loader goes on
            error = AdapterError(
                "the adapter could not be loaded",
                where=digest,
                got=f"{type(caught).__name__}: {caught}",
            )
        seconds = time.perf_counter() - start
        with self._lock:
            self._load_seconds += seconds
            self._loading.discard(digest)
            if adapter is not None:
                error = self._take(digest, adapter)
            if error is not None:
                self._counts["failures"] += 1
                self._failed[digest] = (error, self._clock())
                while len(self._failed) > _MAX_FAILURES:
                    self._failed.popitem(last=False)
            listeners = list(self._listeners)
        for listener in listeners:
            listener()

    def _take(self, digest: str, adapter: PackedAdapter) -> InceError | None:
        """Put into memory what was loaded; where there is no room now, it is loaded again."""
        if digest in self._leaving:
            self._leaving.discard(digest)
            return None
        self._counts["loads"] += 1
        if adapter.num_bytes > self._budget:
            return AdapterError(
                "the adapter is larger than the memory for all of them",
                where=digest,
                got=f"{adapter.num_bytes} bytes",
                expected=f"at most {self._budget}",
                do="give the server more memory for adapters",
            )
        self._sizes[digest] = adapter.num_bytes
        if not self._has_room(adapter.num_bytes):
            self._counts["waits"] += 1
            return None
        for old in list(self._memory):
            if self._memory_bytes() + adapter.num_bytes <= self._budget:
                break
            if self._may_leave(old):
                self._counts["memory_evictions"] += 1
                self._evict(old)
        self._memory[digest] = adapter
        return None

    def _has_room(self, num_bytes: int) -> bool:
        """Whether so much fits, once all that may leave has left."""
        held = sum(
            each.num_bytes for name, each in self._memory.items() if not self._may_leave(name)
        )
        return held + num_bytes <= self._budget

    def _may_leave(self, digest: str) -> bool:
        """Whether memory is won by letting this adapter out of it."""
        slot = self._slots.get(digest)
        return slot is None or slot.users == 0 or not self._shares_memory

    def _evict(self, digest: str) -> None:
        """Let an adapter out of memory; and out of its slot, where that is the same memory."""
        self._memory.pop(digest, None)
        if self._shares_memory and self._slots.pop(digest, None) is not None:
            self._counts["slot_evictions"] += 1

    def _free_slot(self) -> bool:
        """Whether there is an empty slot now; the least recently used leaves its own."""
        if len(self._slots) < self.num_slots:
            return True
        for digest, slot in self._slots.items():
            if slot.users == 0:
                del self._slots[digest]
                self._counts["slot_evictions"] += 1
                return True
        return False

    def _drop(self, digest: str) -> None:
        self._leaving.discard(digest)
        self._slots.pop(digest, None)
        self._memory.pop(digest, None)

    def _failure(self, digest: str) -> InceError | None:
        found = self._failed.get(digest)
        if found is None:
            return None
        error, since = found
        if self._clock() - since >= _RETRY_SECONDS:
            del self._failed[digest]
            return None
        return error

    def _memory_bytes(self) -> int:
        return sum(adapter.num_bytes for adapter in self._memory.values())
