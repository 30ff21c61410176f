"""A run keeps within its memory by smaller forwards, and its result does not notice."""

import contextlib

import pytest
import torch

from ince.errors import TrainingError
from ince.heap import PeakBytes
from ince.record import RunRecord
from ince.train import memory_guard
from ince.train.memory import OverLimitError
from ince.train.micro_batch import Cut, Cuts

# What a token of a forward takes in the memory that these tests make up, and the model before.
TOKEN, HELD = 1000, 50_000
# Rows of a step are four or so, 64 tokens each with their padding.
STEP = {"batch_tokens": 128, "epochs": 4, "save_every": 4}


class MadeUpMemory:
    """Holds a thousand bytes for each token of a forward; refuses at the limit."""

    limit_name = "train.memory"

    def __init__(self, limit_bytes, *, refuses=False, leaks=0):
        self.limit_bytes, self.refuses, self.leaks = limit_bytes, refuses, leaks
        self.most_tokens = 0
        self.shapes = []

    def watch(self, model):
        model.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, _model, _arguments, named):
        tokens = named["input_ids"].numel()
        self.shapes.append(tuple(named["input_ids"].shape))
        self.most_tokens = max(self.most_tokens, tokens)
        if self.refuses and self.need(tokens) > self.limit_bytes:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB\nmore")

    def need(self, tokens):
        return HELD + TOKEN * tokens + self.leaks

    def held(self):
        return HELD

    @contextlib.contextmanager
    def peak(self):
        found, self.most_tokens = PeakBytes(), 0
        yield found
        found.num_bytes = self.need(self.most_tokens)

    def release(self):
        pass

    def stop_at_limit(self, _model):
        return contextlib.nullcontext()


@pytest.fixture
def start(small_run, monkeypatch):
    """A function that runs with a made-up memory; returns model, watcher and memory."""

    def run(folder, memory, *, observer=None, record=None, dropout=0.0, **changes):
        model = small_run.model(dropout=dropout)
        memory.watch(model.get_base_model())
        monkeypatch.setattr(memory_guard, "memory_of", lambda _device, _budget: memory)
        monkeypatch.setattr(memory_guard, "_to_come_bytes", lambda _run, _pages: 0)
        observer = observer or small_run.Watcher()
        _, result = small_run(folder, observer, model=model, record=record, **(STEP | changes))
        return small_run.trained(model), observer, result

    return run


def same(ours, theirs):
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def near(ours, theirs):
    return all(torch.allclose(ours[name], theirs[name], rtol=0, atol=3e-5) for name in theirs)


def said_of_memory(watcher):
    return [line for line in watcher.lines if "memory" in line]


def record_in(folder):
    return RunRecord.create(folder, recipe={}, recipe_digest="d")


def test_without_a_limit_the_worst_is_said_and_nothing_changes(tmp_path, small_run, start):
    plain, _ = small_run(tmp_path / "plain", dropout=0.1, **STEP)
    record = record_in(tmp_path / "probed")
    record["plan"] = {"planned_bytes": 3 * 2**20, "parts": {"framework": 2**20}}
    memory = MadeUpMemory(None)
    model, watcher, _ = start(tmp_path / "probed", memory, record=record, dropout=0.1)
    assert same(model, small_run.trained(plain))
    (line,) = said_of_memory(watcher)
    assert "KiB at the worst micro-batch" in line
    assert line.endswith(" learnt; planned were 3.00 MiB")
    kept = record["memory"]
    assert kept["limit_bytes"] is None
    assert kept["expected_bytes"] == kept["measured_bytes"]
    assert kept["cuts"] == [{"step": 0, "micro_batch_tokens": None}]
    # Every line of the log says what its step took, and none took more than was foreseen.
    peaks = [line["peak_bytes"] for line in small_run.log(tmp_path / "probed")]
    assert max(peaks) == kept["expected_bytes"]


def test_what_does_not_fit_is_cut_and_the_steps_stay_what_they_are(tmp_path, small_run, start):
    whole, _, expected = start(tmp_path / "whole", MadeUpMemory(None))
    record = record_in(tmp_path / "cut")
    memory = MadeUpMemory(HELD + 2 * 64 * TOKEN)
    cut, watcher, result = start(tmp_path / "cut", memory, record=record)
    assert near(cut, whole)
    assert (result.steps, result.num_targets) == (expected.steps, expected.num_targets)
    assert result.final_loss == pytest.approx(expected.final_loss, abs=1e-5)
    lines = said_of_memory(watcher)
    assert "the global batch stays" in lines[0]
    assert " of 174 KiB (train.memory)" in lines[-1]
    kept = record["memory"]
    assert kept["probes"][0]["peak_bytes"] > kept["limit_bytes"]
    assert kept["expected_bytes"] <= kept["limit_bytes"]
    assert kept["measured_bytes"] <= kept["limit_bytes"]
    # To the bit what somebody gets who asks for these forwards himself.
    asked, _ = small_run(
        tmp_path / "asked",
        dropout=0.0,
        **STEP,
        micro_batch_tokens=kept["micro_batch_tokens"],
    )
    assert same(cut, small_run.trained(asked))


@pytest.mark.parametrize("error", [OverLimitError(), MemoryError()])
def test_what_is_refused_while_probing_is_cut_too(tmp_path, start, monkeypatch, error):
    memory = MadeUpMemory(HELD + 64 * TOKEN)

    @contextlib.contextmanager
    def stop_at_limit(_model):
        yield
        if memory.need(memory.most_tokens) > memory.limit_bytes:
            raise error

    monkeypatch.setattr(memory, "stop_at_limit", stop_at_limit)
    _, watcher, _ = start(tmp_path, memory)
    assert memory.shapes[-1] == (1, 64)
    assert "at the worst micro-batch, 1 row of 64 tokens" in said_of_memory(watcher)[-1]


def test_a_row_that_does_not_fit_is_an_error_that_says_what_helps(tmp_path, start):
    record = record_in(tmp_path)
    with pytest.raises(TrainingError, match="not even one row fits") as caught:
        start(tmp_path, MadeUpMemory(HELD + 10 * TOKEN), record=record)
    assert "data.max_length" in caught.value.do
    assert "a row of 64 tokens (data.jsonl:" in caught.value.where
    assert caught.value.expected == "at most 58.6 KiB (train.memory)"
    assert record["memory"]["probes"][-1]["num_rows"] == 1
    with pytest.raises(TrainingError, match="base and the adapter alone"):
        start(tmp_path, MadeUpMemory(HELD - 1))


def test_memory_that_runs_out_in_mid_run_repeats_the_step_in_parts(tmp_path, small_run, start):
    whole, _, expected = start(tmp_path / "whole", MadeUpMemory(None))
    memory = MadeUpMemory(10**9, refuses=True)

    def neighbor_comes():
        memory.limit_bytes = HELD + 2 * 64 * TOKEN

    record = record_in(tmp_path / "cut")
    observer = small_run.Watcher(2, neighbor_comes)
    cut, watcher, result = start(tmp_path / "cut", memory, observer=observer, record=record)
    assert near(cut, whole)
    assert (result.steps, result.num_targets, result.num_tokens) == (
        expected.steps,
        expected.num_targets,
        expected.num_tokens,
    )
    assert any("step 3: memory: CUDA out of memory. Tried to" in line for line in watcher.lines)
    events = [line for line in small_run.log(tmp_path / "cut") if "event" in line]
    assert events[0]["event"] == "micro-batch cut"
    assert events[0]["step"] == 3
    cuts = record["memory"]["cuts"]
    assert [cut["step"] for cut in cuts][:2] == [0, 2]
    assert all(rows * length <= 2 * 64 for rows, length in memory.shapes[-5:])


def test_killed_after_a_cut_it_repeats_the_cut_at_its_step(tmp_path, small_run, start):
    """With dropout, whose masks a cut moves: the same bytes only if cut at the same step."""

    def scarce_after(step):
        memory = MadeUpMemory(10**9, refuses=True)

        def neighbor_comes():
            memory.limit_bytes = HELD + 2 * 64 * TOKEN

        return memory, small_run.Watcher(step, neighbor_comes)

    memory, observer = scarce_after(5)
    whole, _, _ = start(tmp_path / "whole", memory, observer=observer, dropout=0.1)

    memory, observer = scarce_after(5)
    seen = observer.stepped

    def stepped(report):
        seen(report)
        if report.step == 7:
            raise small_run.PowerGone

    observer.stepped = stepped
    with pytest.raises(small_run.PowerGone):
        start(tmp_path / "killed", memory, observer=observer, dropout=0.1)
    # The neighbor has left, and the limit is what it was: the cut is of the past, and kept.
    resumed, watcher, _ = start(tmp_path / "killed", MadeUpMemory(10**9), dropout=0.1)
    assert watcher.begun[0] == 4
    assert same(resumed, whole)


def test_a_choice_is_kept_when_the_run_goes_on_and_made_anew_for_less_memory(tmp_path, start):
    limit = HELD + 2 * 64 * TOKEN
    memory = MadeUpMemory(limit)
    start(tmp_path, memory, stop_after=2)
    chosen = Cuts.read(tmp_path, recipe_digest="d").cuts
    # Measured a little higher this time, as happens: the same cut, or the bytes would differ.
    again = MadeUpMemory(limit, leaks=TOKEN)
    _, watcher, _ = start(tmp_path, again, stop_after=3)
    assert Cuts.read(tmp_path, recipe_digest="d").cuts == chosen
    assert said_of_memory(watcher) == []
    less = MadeUpMemory(HELD + 64 * TOKEN)
    start(tmp_path, less, stop_after=4)
    cuts = Cuts.read(tmp_path, recipe_digest="d")
    assert cuts.cuts[:-1] == chosen
    assert cuts.cuts[-1].step == 3
    assert cuts.limit_bytes == less.limit_bytes


def test_steps_that_grow_beyond_the_limit_are_cut_after_the_second(tmp_path, small_run, start):
    limit = HELD + 6 * 64 * TOKEN
    memory = MadeUpMemory(limit)
    observer = small_run.Watcher(2, lambda: setattr(memory, "leaks", 5 * 64 * TOKEN))
    _, watcher, _ = start(tmp_path, memory, observer=observer, batch_tokens=100)
    events = [line for line in small_run.log(tmp_path) if "event" in line]
    assert events[0]["step"] == 4  # steps 3 and 4 were above it
    assert "steps held" in events[0]["what"]
    # At last a forward has one row and is still above: said once, and the run goes on.
    assert sum("one row already" in line for line in watcher.lines) <= 1


def test_one_step_above_the_limit_is_an_accident(tmp_path, small_run, start):
    memory = MadeUpMemory(HELD + 6 * 64 * TOKEN)

    def leak_for_a_step(report):
        memory.leaks = 0 if report.step != 2 else 6 * 64 * TOKEN

    observer = small_run.Watcher()
    observer.stepped = leak_for_a_step
    start(tmp_path, memory, observer=observer, batch_tokens=100)
    assert [line for line in small_run.log(tmp_path) if "event" in line] == []
    assert Cuts.read(tmp_path, recipe_digest="d").cuts == [Cut(0, None)]


def test_one_row_that_runs_out_in_mid_run_is_an_error(tmp_path, small_run, start):
    memory = MadeUpMemory(10**9, refuses=True)
    observer = small_run.Watcher(2, lambda: setattr(memory, "limit_bytes", HELD))
    with pytest.raises(TrainingError, match="out of memory at step 3, with one row") as caught:
        start(tmp_path, memory, observer=observer)
    assert "CUDA out of memory" in caught.value.got


def test_other_errors_of_a_step_are_not_retried(tmp_path, small_run, start, monkeypatch):
    calls = []

    def fail(*_arguments, **_options):
        calls.append(1)
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr("ince.train.run.TrainRun.backward", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        start(tmp_path, MadeUpMemory(10**9))
    assert len(calls) == 1
