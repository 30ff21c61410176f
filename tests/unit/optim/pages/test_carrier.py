"""CUDA's copies are in order whatever a device does first: streams that are played on a CPU.

A stream here is a queue, and whose turn it is is drawn: what was said to wait waits, and everything
else may come as early or as late as it can. A copy that is not held back long enough then reads or
overwrites what it must not, in some of the draws.
"""

import contextlib
import random
import threading
from collections import deque

import pytest
import torch
from torch.overrides import TorchFunctionMode

from ince.optim.pages import PagesConfig, PageStore
from ince.optim.pages.carrier import StreamCarrier
from ince.optim.pages.layout import PagePlan
from ince.optim.pages.memory import page_memory

SIZE = 4096


class Event:
    def __init__(self, world):
        self._world, self.happened = world, False

    def synchronize(self):
        self._world.play_until(lambda: self.happened)


class Stream:
    def __init__(self, world):
        self.world, self.queue = world, deque()
        world.streams.append(self)

    def add(self, act, ready=lambda: True):
        with self.world.lock:
            self.queue.append((ready, act))
            self.world.play_some()

    def record_event(self):
        event = Event(self.world)
        self.add(lambda: setattr(event, "happened", True))
        return event

    def wait_event(self, event):
        self.add(lambda: None, lambda: event.happened)

    def wait_stream(self, other):
        self.wait_event(other.record_event())

    def synchronize(self):
        self.world.play_until(lambda: not self.queue)


class World(TorchFunctionMode):
    """The device: its streams, and copies that only join a queue."""

    def __init__(self, seed):
        super().__init__()
        self.streams, self.lock, self._drawn = [], threading.RLock(), random.Random(seed)
        self._current = [Stream(self)]

    def current(self, _device=None):
        return self._current[-1]

    @contextlib.contextmanager
    def inside(self, stream):
        self._current.append(stream)
        yield
        self._current.pop()

    def _play_one(self):
        able = [stream for stream in self.streams if stream.queue and stream.queue[0][0]()]
        if able:
            self._drawn.choice(able).queue.popleft()[1]()
        return bool(able)

    def play_some(self):
        while self._drawn.random() < 0.5 and self._play_one():
            pass

    def play_until(self, is_so):
        with self.lock:
            while not is_so():
                assert self._play_one(), "each stream waits for another"

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.copy_ and (kwargs or {}).get("non_blocking"):
            into, source = (tensor.numpy() for tensor in args)
            self.current().add(lambda: into.__setitem__(slice(None), source))
            return args[0]
        return func(*args, **(kwargs or {}))


class AddsOne:
    """The arithmetic of a step, which is queued like everything else on the device."""

    def __init__(self, world):
        self._world = world

    def compute(self, _page, staged):
        numbers = staged.numpy()
        self._world.current().add(lambda: numbers.__iadd__(1))

    def keep_old(self, page, old):
        old.fill_(page.number)

    def put_back(self, page, old):
        raise AssertionError("no step fails")


@pytest.fixture
def world_of(monkeypatch):
    """A function: the world of a seed, in the place of torch's CUDA."""

    def make(seed):
        world = World(seed)
        monkeypatch.setattr("torch.cuda.Stream", lambda _device: Stream(world))
        monkeypatch.setattr("torch.cuda.current_stream", world.current)
        monkeypatch.setattr("torch.cuda.stream", world.inside)
        for module in ("store", "stream"):
            monkeypatch.setattr(
                f"ince.optim.pages.{module}.page_memory",
                lambda num_bytes, *, pinned: page_memory(num_bytes, pinned=False),
            )
        return world

    return make


def take_steps(world, directory, num_pages, **budgets):
    """Five steps of so many pages; the store and its pages."""
    carrier = StreamCarrier(torch.device("cpu"), SIZE)
    store = PageStore(PagesConfig(page_bytes=SIZE, directory=directory, **budgets))
    pages = store.add([(PagePlan((), SIZE, 64), carrier)] * num_pages)
    for _ in range(5):
        store.step(pages, AddsOne(world))
    world.current().synchronize()
    return store, pages


def all_took_five_steps(store, pages):
    for page in pages:
        with store.opened(page, write=False) as states:
            assert states.eq(5).all()
    store.close()


@pytest.mark.parametrize("device", [0, 6 * SIZE])
@pytest.mark.parametrize("memory", [0, 8 * SIZE, None])
@pytest.mark.parametrize("seed", range(5))
def test_every_page_takes_every_step_once(world_of, tmp_path, seed, memory, device):
    world = world_of(seed)
    with world:
        store, pages = take_steps(world, tmp_path, 12, device=device, memory=memory)
        tiers = {page.tier.value for page in pages}
        assert ("device" in tiers, "file" in tiers) == (device > 0, memory is not None)
        all_took_five_steps(store, pages)


@pytest.mark.parametrize("seed", range(5))
def test_a_page_goes_up_after_it_came_down_where_the_ring_is_not_full(world_of, tmp_path, seed):
    world = world_of(seed)
    with world:
        all_took_five_steps(*take_steps(world, tmp_path, 2))
