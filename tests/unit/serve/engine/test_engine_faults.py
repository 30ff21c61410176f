"""What fails, fails alone: a request at which the model raises, a listener, memory, an adapter."""

import contextlib
import threading

import pytest
import torch

from ince.errors import AdapterError, InceError, OutOfMemoryError
from ince.serve.engine import Engine, Failed, Finished, GenerationRequest
from ince.serve.sampling import SamplingOptions

POISON = 77


def greedy(prompt, max_tokens=4, **settings):
    options = SamplingOptions(max_tokens=max_tokens, temperature=0.0)
    return GenerationRequest("r", tuple(prompt), options, **settings)


@pytest.fixture
def engine_of(small_tokenizer):
    """A function that makes an engine whose forwards run `check` on their tokens first."""
    made = []

    def make(model, check=lambda tokens: None, **settings):
        usual = {"max_batch_tokens": 40, "max_running": 6, "kv_bytes": 1 << 20}
        engine = Engine(model, small_tokenizer, **(usual | settings))
        made.append(engine)
        forward = engine._forward.run

        def run(rows):
            check([t for r in rows for t in r.sequence.tokens[r.start : r.start + r.count]])
            return forward(rows)

        engine._forward.run = run
        engine.start()
        return engine

    yield make
    for engine in made:
        engine.close()


def submit(engine, requests):
    """The last event of each."""
    ends, done = {}, threading.Semaphore(0)

    def listener(i):
        def hear(event):
            assert i not in ends, "something came after the end"
            if isinstance(event, Finished | Failed):
                ends[i] = event
                done.release()

        return hear

    for i, request in enumerate(requests):
        engine.submit(request, listener(i))
    for _ in requests:
        assert done.acquire(timeout=60)
    return [ends[i] for i in range(len(requests))]


def test_a_request_at_which_the_model_fails_fails_alone(tiny_llama, engine_of):
    def check(tokens):
        if POISON in tokens:
            raise ValueError("poison")

    engine = engine_of(tiny_llama(), check)
    ends = submit(engine, [greedy([i, POISON] if i == 3 else [i, 5]) for i in range(6)])
    assert [type(end) for end in ends] == [Finished] * 3 + [Failed] + [Finished] * 2
    assert "ValueError: poison" in str(ends[3].error)
    (end,) = submit(engine, [greedy([1, 2])])
    assert end.reason == "length"
    assert engine.drain(10)
    assert engine.stats().kv_blocks_used == 0


def test_where_memory_is_refused_steps_become_smaller(tiny_llama, engine_of):
    sizes = []

    def check(tokens):
        sizes.append(len(tokens))
        if len(tokens) > 3:
            raise RuntimeError("DefaultCPUAllocator: not enough memory")

    engine = engine_of(tiny_llama(), check)
    requests = [greedy([i + 5] * 20) for i in range(3)]
    assert all(isinstance(end, Finished) for end in submit(engine, requests))
    assert max(sizes[10:]) <= 8
    assert engine._scheduler.max_batch_tokens < 40


def test_a_token_without_memory_fails_its_request_and_the_engine_goes_on(tiny_llama, engine_of):
    def check(tokens):
        if POISON in tokens:
            raise MemoryError

    engine = engine_of(tiny_llama(), check)
    bad, good = submit(engine, [greedy([5, POISON, 5]), greedy([5, 6])])
    assert isinstance(bad.error, OutOfMemoryError)
    assert good.reason == "length"


def test_steps_grow_again_after_a_refusal(tiny_llama, engine_of):
    refusals = [1]

    def check(tokens):
        if refusals and len(tokens) > 8:
            refusals.pop()
            raise torch.OutOfMemoryError("CUDA out of memory")

    engine = engine_of(tiny_llama(), check)
    submit(engine, [greedy([5] * 30, 200)])
    assert engine._scheduler.max_batch_tokens == 40


def test_a_listener_that_raises_hears_nothing_more_and_harms_nobody(tiny_llama, engine_of):
    engine = engine_of(tiny_llama())
    heard = []

    def listener(event):
        heard.append(event)
        if len(heard) == 3:
            raise RuntimeError("gone")

    engine.submit(greedy([5, 6], 100), listener)
    (end,) = submit(engine, [greedy([5, 7])])
    assert end.reason == "length"
    assert engine.drain(30)
    assert len(heard) == 3
    assert engine.stats().kv_blocks_used == 0


def test_a_fault_of_the_scheduler_fails_what_there_is_and_the_engine_goes_on(tiny_llama, engine_of):
    engine = engine_of(tiny_llama())
    plan, faults = engine._scheduler.plan, [1]

    def broken(now):
        if faults:
            faults.pop()
            raise KeyError("a bug")
        return plan(now)

    engine._scheduler.plan = broken
    (bad,) = submit(engine, [greedy([5, 6])])
    assert "KeyError" in str(bad.error)
    (good,) = submit(engine, [greedy([5, 6])])
    assert good.reason == "length"


def test_logits_that_are_not_numbers_fail_their_request(tiny_llama, engine_of):
    model = tiny_llama(tie_word_embeddings=False)
    engine = engine_of(model)
    with torch.no_grad():
        model.get_input_embeddings().weight[POISON] = float("nan")
    bad, good = submit(engine, [greedy([POISON]), greedy([5, 6])])
    assert "not numbers" in str(bad.error)
    assert good.reason == "length"


class LoadingAdapters:
    """Adapters that change nothing, and are loaded when a test says so."""

    num_slots = 2

    def __init__(self):
        self.states = {}
        self.listener = None
        self.segments = []

    def state(self, digest):
        return self.states.get(digest, "disk")

    def prefetch(self, digest):
        self.states.setdefault(digest, "loading")

    def error(self, digest):
        return AdapterError("it is broken", where=digest)

    def acquire(self, digest):
        self.states[digest] = "device"
        return digest

    def release(self, digest):
        pass

    def listen(self, listener):
        self.listener = listener

    def use(self, tokens, wanted):
        self.segments.append((list(tokens), list(wanted)))
        return contextlib.nullcontext()

    def stats(self):
        return dict(self.states)

    def come(self, digest, state):
        self.states[digest] = state
        self.listener()


def test_a_request_waits_for_its_adapter_and_the_engine_sleeps_meanwhile(tiny_llama, engine_of):
    adapters = LoadingAdapters()
    engine = engine_of(tiny_llama(), adapters=adapters)
    ends, done = [], threading.Semaphore(0)

    def listener(event):
        if isinstance(event, Finished | Failed):
            ends.append(event)
            done.release()

    engine.submit(greedy([5, 6], adapter="a"), listener)
    engine.submit(greedy([5, 6], adapter="b"), listener)
    engine.submit(greedy([5, 6]), listener)
    assert done.acquire(timeout=30)
    turns = []
    step = engine._runner.step
    engine._runner.step = lambda: turns.append(1) or step()
    assert not done.acquire(timeout=0.1)
    assert len(turns) <= 2
    adapters.come("b", "failed")
    assert done.acquire(timeout=30)
    adapters.come("a", "memory")
    assert done.acquire(timeout=30)
    assert [type(end) for end in ends] == [Finished, Failed, Finished]
    assert "broken" in str(ends[1].error)
    assert engine.stats().adapters == {"a": "device", "b": "failed"}


def test_rows_of_an_adapter_are_one_segment(tiny_llama, engine_of):
    adapters = LoadingAdapters()
    adapters.states = {"a": "memory", "b": "memory"}
    engine = engine_of(tiny_llama(), adapters=adapters)
    adapters.segments.clear()
    names = ["a", None, "b", "a", None, "b"]
    ends = submit(engine, [greedy([5] * 4, adapter=name) for name in names])
    assert all(isinstance(end, Finished) for end in ends)
    for tokens, wanted in adapters.segments:
        for segments in (tokens, wanted):
            held = [segment[0] for segment in segments]
            assert len(held) == len(set(held))
            starts = [segment[1] for segment in segments]
            assert starts == [0, *[segment[2] for segment in segments[:-1]]]
    assert any(len(tokens) == 3 for tokens, _ in adapters.segments)


def test_an_error_of_ours_is_told_as_it_is(tiny_llama, engine_of):
    def check(tokens):
        if POISON in tokens:
            raise AdapterError("its own words")

    (end,) = submit(engine_of(tiny_llama(), check), [greedy([POISON])])
    assert isinstance(end.error, InceError)
    assert end.error.what == "its own words"
