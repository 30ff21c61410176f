"""Ten thousand at once: who is let in ends once, the others are told when to come back."""

import gc
import sys
import threading
import time
import weakref

import pytest

from ince.errors import QueueFullError
from ince.serve.engine import Engine, Failed, Finished, GenerationRequest
from ince.serve.engine.sequence import SequenceState
from ince.serve.sampling import SamplingOptions

NUM = 10_000


def lines_of(call):
    """How many lines of Python a call runs: its work, whatever else the machine does."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        count += event == "line"
        return trace

    old = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(old)
    return count


@pytest.mark.parametrize("of", ["one tenant", "tenants", "adapters"])
def test_coming_and_going_is_as_much_work_among_ten_thousand_as_among_a_few(
    simulation, fake_slots, of
):
    scheduler = simulation(slots=fake_slots(4)).scheduler

    def make(i):
        return SequenceState(
            [1, 2, 3],
            max_tokens=2,
            tenant=f"t{i}" if of == "tenants" else "",
            adapter=f"a{i}" if of == "adapters" else None,
            deadline=1e9 - i,
        )

    there = [make(i) for i in range(NUM)]
    coming, going, turns = [], [], []
    for i, sequence in enumerate(there):
        if i % 100 in (98, 99):
            coming.append(lines_of(lambda s=sequence: scheduler.add(s)))
            gone = there[i // 2]
            if gone.stage.name == "WAITING":
                going.append(lines_of(lambda s=gone: scheduler.finish(s)))
        else:
            scheduler.add(sequence)
        if i % 1000 == 999:  # a charge, and who is next after it
            scheduler.counters.charge(sequence.tenant, outputs=9)
            counters = scheduler.counters
            turns.append(lines_of(lambda c=counters: c.line_up(c.next())))
    for work in (coming, going, turns):
        assert max(work[len(work) // 2 :]) <= 2 * max(work[: len(work) // 2]) < 300


@pytest.fixture
def engine_of(tiny_llama, small_tokenizer):
    made = []

    def make(**settings):
        usual = {"max_batch_tokens": 512, "max_running": 128, "kv_bytes": 1 << 20}
        made.append(Engine(tiny_llama(), small_tokenizer, **(usual | settings)))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def request(i):
    options = SamplingOptions(max_tokens=1, temperature=0.0)
    return GenerationRequest(
        f"r{i}", (5 + i % 50, 6), options, tenant=f"t{i % 7}", deadline=time.monotonic() + 600
    )


def test_a_flood_is_answered_or_refused_and_leaves_nothing_behind(engine_of):
    engine = engine_of(max_waiting=1000)
    ends = [[] for _ in range(NUM)]
    refusals = []
    flights = weakref.WeakSet()

    def flood(first):
        for i in range(first, NUM, 4):

            def hear(event, i=i):
                if isinstance(event, Finished | Failed):
                    ends[i].append(event)

            try:
                flights.add(engine.submit(request(i), hear)._flight)
            except QueueFullError as error:
                refusals.append((i, error.retry_after))

    threads = [threading.Thread(target=flood, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert engine.stats().waiting == engine._most_live == 1128
    engine.start()
    assert engine.drain(60)
    refused = {i for i, _ in refusals}
    assert len(refused) == len(refusals) == NUM - 1128
    assert all(1 <= seconds <= 60 for _, seconds in refusals)
    for i, heard in enumerate(ends):
        assert [type(event) for event in heard] == ([] if i in refused else [Finished])
    assert {event.reason for heard in ends for event in heard} == {"length"}
    assert engine.stats().kv_blocks_used == 0
    gc.collect()
    assert not flights


def test_ten_thousand_cancellations_end_each_once_and_the_engine_goes_on(engine_of):
    engine = engine_of(max_waiting=NUM)
    ends = [[] for _ in range(NUM)]
    begun = threading.Event()

    def listener(i):
        def hear(event):
            begun.set()
            if isinstance(event, Finished | Failed):
                ends[i].append(event.reason)

        return hear

    handles = [engine.submit(request(i), listener(i)) for i in range(NUM)]
    engine.start()
    assert begun.wait(60)
    for handle in [*handles, *handles[:100]]:
        handle.cancel()
    assert engine.submit(request(0), lambda event: None)
    assert engine.drain(60)
    assert {len(heard) for heard in ends} == {1}
    reasons = [heard[0] for heard in ends]
    assert set(reasons) <= {"cancelled", "length"}
    assert reasons.count("cancelled") > NUM // 2
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.kv_blocks_used) == (0, 0, 0)
