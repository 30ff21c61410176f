import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ince.serve.engine.working_set import Patience


@settings(max_examples=40)
@given(
    popular=st.integers(1, 3),
    num_slots=st.integers(1, 3),
    load_rounds=st.integers(0, 3),
    running=st.integers(2, 6),
)
def test_nobody_starves_beside_adapters_that_are_always_wanted(
    simulation, fake_slots, popular, num_slots, load_rounds, running
):
    slots = fake_slots(num_slots, load_rounds)
    server = simulation(num_blocks=64, slots=slots, max_running=running, max_batch_tokens=40)

    def keep_busy():
        for name in range(popular):
            waiting = server.scheduler.waiting.by_adapter[f"hot {name}"]
            for _ in range(3 - waiting):
                server.add([1] * 4, max_tokens=6, adapter=f"hot {name}")

    keep_busy()
    for _ in range(20):
        server.step()
        keep_busy()
    cold = [server.add([1] * 4, max_tokens=3, adapter=f"cold {i}") for i in range(4)]
    for _ in range(400):
        server.step()
        keep_busy()
        if all(s in server.done for s in cold):
            break
    else:
        raise AssertionError("a request starved")


def test_a_working_set_above_the_slots_is_not_thrashed(simulation, fake_slots):
    """Alternating requests for four adapters and two slots: far fewer fills than requests."""
    slots = fake_slots(2)
    server = simulation(
        num_blocks=200, slots=slots, max_running=4, max_batch_tokens=60, patience=Patience(16, 5.0)
    )
    for i in range(200):
        server.add([i % 7] * 3, max_tokens=4, adapter=f"a{i % 4}")
    server.run(2000)
    assert len(server.done) == 200
    assert slots.num_fills < 40


def test_an_idle_slot_is_filled_at_once(simulation, fake_slots):
    slots = fake_slots(2)
    server = simulation(slots=slots)
    for name in "abcd":
        sequence = server.add([1], max_tokens=1, adapter=name)
        server.step()
        assert sequence in server.done


def test_a_request_goes_ahead_of_one_whose_adapter_is_loading(simulation, fake_slots):
    server = simulation(slots=fake_slots(2, load_rounds=5))
    slow = server.add([1], max_tokens=1, adapter="slow")
    quick = server.add([1], max_tokens=1)
    server.step()
    assert server.done == [quick]
    server.run(10)
    assert server.done == [quick, slow]


def test_an_adapter_that_fails_fails_its_requests_alone(simulation, fake_slots):
    slots = fake_slots(2, failing=frozenset({"bad"}))
    server = simulation(slots=slots)
    bad = [server.add([1], max_tokens=2, adapter="bad") for _ in range(3)]
    good = server.add([1], max_tokens=2, adapter="good")
    server.run(10)
    assert server.failed == bad
    assert server.done == [good]


def test_without_slots_adapters_cannot_be_had(simulation):
    server = simulation()
    sequence = server.add([1], max_tokens=2, adapter="x")
    plan = server.scheduler.plan(1.0)
    assert plan.failed == [(sequence, None)]


@pytest.mark.parametrize("num_slots", [1, 2])
def test_one_tenant_with_many_adapters_does_not_hold_up_another(simulation, fake_slots, num_slots):
    slots = fake_slots(num_slots)
    server = simulation(num_blocks=100, slots=slots, max_running=4, max_batch_tokens=40)
    for i in range(60):
        server.add([1] * 4, max_tokens=8, tenant="many", adapter=f"m{i}")
    for _ in range(30):
        server.step()
    base = server.add([1] * 4, max_tokens=8, tenant="one")
    start = server.num_steps
    while base not in server.done:
        server.step()
    assert server.num_steps - start <= 12
