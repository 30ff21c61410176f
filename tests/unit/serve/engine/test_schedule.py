import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ince.errors import InputError
from ince.serve.engine.blocks import BlockPool
from ince.serve.engine.schedule import Scheduler
from ince.serve.engine.sequence import SequenceState, Stage

ADAPTERS = ["x", "y", "z", "w", "broken"]
requests = st.fixed_dictionaries(
    {
        "prompt": st.builds(
            lambda kind, length: [(i // 16 + kind) % 3 for i in range(length)],
            st.integers(0, 2),
            st.integers(1, 90),
        ),
        "max_tokens": st.integers(1, 40),
        "tenant": st.sampled_from(["", "a", "b"]),
        "adapter": st.none() | st.sampled_from(ADAPTERS),
        "salt": st.sampled_from(["", "", "s"]),
        "every_logit": st.sampled_from([False, False, True]),
        "late": st.sampled_from([None, None, None, 0.05, 0.3]),
    }
)
moves = st.lists(
    st.tuples(st.just("add"), requests)
    | st.tuples(st.just("step"), st.integers(1, 4))
    | st.tuples(st.just("cancel"), st.integers(0, 20))
    | st.tuples(st.just("room"), st.integers(1, 30)),
    max_size=40,
)


@settings(max_examples=120)
@given(
    moves=moves,
    num_blocks=st.integers(9, 30),
    num_slots=st.integers(1, 3),
    load_rounds=st.integers(0, 3),
)
def test_whatever_happens_no_block_leaks_nobody_reads_anothers_and_all_end(
    simulation, fake_slots, moves, num_blocks, num_slots, load_rounds
):
    slots = fake_slots(num_slots, load_rounds, frozenset({"broken"}))
    server = simulation(num_blocks=num_blocks, slots=slots, max_logits=10)
    num_added = 0
    for move, value in moves:
        if move == "add":
            value = dict(value)
            late = value.pop("late")
            server.add(**value, deadline=None if late is None else server.now + late)
            num_added += 1
        elif move == "step":
            for _ in range(value):
                server.step()
        elif move == "cancel" and server.live:
            server.finish(server.live[value % len(server.live)])
        elif move == "room":
            server.scheduler.max_batch_tokens = value
    server.scheduler.max_batch_tokens = 24
    server.run(200 + 150 * len(server.live))
    assert len(server.done) + len(server.failed) == num_added
    assert {s.adapter for s in server.failed} <= {"broken"}
    assert not server.scheduler.has_work
    assert server.pool.num_used == 0
    assert not +slots.users
    assert all(s.stage is Stage.DONE for s in server.done + server.failed)


def test_a_request_takes_the_prefix_of_one_before_it(simulation):
    server = simulation()
    prompt = list(range(50))
    first = server.add(prompt, tenant="a", adapter=None)
    server.run(10)
    again = server.add(prompt, tenant="a", adapter=None)
    others = [
        server.add(prompt, tenant="b"),
        server.add(prompt, tenant="a", salt="s"),
        server.add(prompt, tenant="a", every_logit=True),
    ]
    server.run(20)
    assert first.cached_tokens == 0
    assert again.cached_tokens == 48
    assert [s.cached_tokens for s in others] == [0, 0, 0]
    assert server.scheduler.num_hit_tokens == 48


def test_the_last_token_of_a_prompt_is_always_computed(simulation):
    server = simulation()
    server.add(list(range(32)), max_tokens=1)
    server.run(10)
    again = server.add(list(range(32)), max_tokens=1)
    server.run(10)
    assert again.cached_tokens == 16


def test_decoding_goes_on_while_a_long_prompt_is_read(simulation):
    server = simulation(num_blocks=60, max_batch_tokens=8)
    talker = server.add([1], max_tokens=20)
    server.step()
    server.add([2] * 100, max_tokens=1)
    before = talker.num_generated
    for _ in range(10):
        plan = server.step()
        assert sum(row.count for row in plan.rows) == 8
    assert talker.num_generated == before + 10


def test_where_blocks_run_out_the_oldest_goes_on(simulation):
    server = simulation(num_blocks=6, max_batch_tokens=40)
    old = server.add([1] * 20, max_tokens=60)
    young = server.add([2] * 20, max_tokens=60)
    server.run(400)
    assert server.scheduler.num_preemptions > 0
    assert [s.arrival for s in server.done] == [old.arrival, young.arrival]
    assert young.num_generated == 60


def test_deadlines_are_told_once_and_soonest_first(simulation):
    server = simulation()
    late = server.add([1], max_tokens=30, deadline=9.0)
    soon = server.add([1], max_tokens=30, deadline=5.0)
    assert server.scheduler.next_deadline() == 5.0
    assert server.scheduler.due(4.9) == []
    assert server.scheduler.due(9.5) == [soon, late]
    assert server.scheduler.due(99.0) == []
    assert server.scheduler.next_deadline() is None


def test_many_short_lived_deadlines_leave_nothing_behind(simulation):
    scheduler = simulation().scheduler
    for _ in range(1000):
        sequence = SequenceState([1], max_tokens=1, deadline=1e9)
        scheduler.add(sequence)
        scheduler.finish(sequence)
    assert len(scheduler._deadlines._heap) <= 65


@pytest.mark.parametrize(("running", "tokens"), [(0, 8), (8, 8), (9, 8)])
def test_a_step_without_room_is_refused(running, tokens):
    with pytest.raises(InputError, match="must have room"):
        Scheduler(BlockPool(4), max_running=running, max_batch_tokens=tokens)
