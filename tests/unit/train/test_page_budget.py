"""Pages give way to the forward and backward, and the result does not notice."""

import contextlib

import pytest
import torch

from ince.heap import PeakBytes
from ince.record import RunRecord
from ince.train import memory_guard

TOKEN, HELD, PAGE = 1000, 50_000, 4096


class MadeUpMemory:
    """Holds a thousand bytes for each token of a forward, and what the pages hold."""

    limit_name = "train.memory"

    def __init__(self, limit_bytes):
        self.limit_bytes = limit_bytes
        self.optimizer, self.most_tokens, self.leaks = None, 0, 0

    def watch(self, model):
        model.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, _model, _arguments, named):
        self.most_tokens = max(self.most_tokens, named["input_ids"].numel())

    def held(self):
        return HELD + self.leaks + self.optimizer.usage().memory_bytes

    @contextlib.contextmanager
    def peak(self):
        found, self.most_tokens = PeakBytes(), 0
        yield found
        found.num_bytes = self.held() + TOKEN * self.most_tokens

    def release(self):
        pass

    def stop_at_limit(self, _model):
        return contextlib.nullcontext()


@pytest.fixture
def start(small_run, monkeypatch):
    """A function that trains with a made-up limit; returns weights, watcher and record."""

    def run(folder, limit, *, observer=None, **changes):
        model = small_run.base().requires_grad_(True)
        memory = MadeUpMemory(limit)
        memory.watch(model)
        guard = memory_guard.MemoryGuard

        def guarded(run, **options):
            memory.optimizer = run.optimizer
            return guard(run, **options)

        monkeypatch.setattr(memory_guard, "memory_of", lambda _device, _budget: memory)
        monkeypatch.setattr(memory_guard, "_gradient_bytes", lambda _run: 0)
        monkeypatch.setattr("ince.train.loop.MemoryGuard", guarded)
        observer = observer or small_run.Watcher()
        observer.memory = memory
        settings = {"method": "full", "lr": 1e-3, "max_steps": 6, "save_every": 3}
        record = RunRecord.create(folder, recipe={}, recipe_digest="d")
        pages = {"page_bytes": PAGE}
        small_run(
            folder,
            observer,
            model=model,
            optimizer="paged_adamw",
            record=record,
            **(settings | {"pages": pages} | changes),
        )
        return small_run.trained(model), observer, record

    return run


def same(ours, theirs):
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_pages_get_what_forward_and_backward_leave(tmp_path, small_run, start):
    free, _, record = start(tmp_path / "free", None)
    state = 8 * sum(p.numel() for p in free.values())
    assert record["memory"]["pages"]["memory_bytes"] == state
    limit = HELD + 64 * TOKEN + state // 2
    half, watcher, record = start(tmp_path / "half", limit)
    assert same(half, free)
    found = record["memory"]
    assert 0 < found["pages"]["memory_bytes"] <= state // 2
    assert found["pages"]["file_bytes"] > state // 3
    # Pages gave way, forwards did not.
    assert found["cuts"] == [{"step": 0, "micro_batch_tokens": None}]
    assert max(report.peak_bytes for report in watcher.reports) <= limit
    assert any("optimizer state gets" in line for line in watcher.lines)


def test_a_run_that_holds_too_much_lets_pages_go_first(tmp_path, small_run, start):
    free, _, _ = start(tmp_path / "free", None)
    state = 8 * sum(p.numel() for p in free.values())
    watcher = small_run.Watcher(2)

    def leak():
        watcher.memory.leaks = state // 4

    watcher.act = leak
    held, _, record = start(tmp_path / "held", HELD + 64 * TOKEN + state, observer=watcher)
    assert same(held, free)
    (event,) = [line for line in small_run.log(tmp_path / "held") if "event" in line]
    assert event["event"] == "pages shrunk"
    assert record["memory"]["pages"]["file_bytes"] > 0
    assert record["memory"]["cuts"] == [{"step": 0, "micro_batch_tokens": None}]


def test_pages_that_may_not_leave_memory_stay(tmp_path, start):
    _, _, record = start(tmp_path, HELD + 600 * TOKEN, pages={"page_bytes": PAGE, "file": 0})
    assert record["memory"]["pages"]["file_bytes"] == 0


@pytest.mark.parametrize("memory", ["auto", 16 * PAGE])
def test_what_is_foreseen_has_no_more_state_than_may_be_held(tmp_path, start, memory):
    weights, _, record = start(tmp_path, None, pages={"page_bytes": PAGE, "memory": memory})
    state = 8 * sum(p.numel() for p in weights.values())
    found = record["memory"]
    foreseen = found["expected_bytes"] - max(probe["peak_bytes"] for probe in found["probes"])
    assert foreseen == (state if memory == "auto" else memory) <= state
    assert found["pages"]["memory_bytes"] <= foreseen
