import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ince.errors import InputError
from ince.serve.engine.fairness import TenantCounters


@settings(max_examples=20)
@given(
    prompts=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    answers=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    weight=st.sampled_from([1.0, 2.0]),
)
def test_the_work_of_two_who_always_wait_differs_by_a_bound(simulation, prompts, answers, weight):
    server = simulation(
        num_blocks=64, max_batch_tokens=40, max_running=4, weights={"b": weight}, max_logits=99
    )
    work = {"a": 0.0, "b": 0.0}
    done: dict[int, int] = {}  # tokens of a prompt that were computed once
    # The most that one may be ahead by: prompts that were charged, and answers under way.
    bound = 2 * max(*prompts, 2.0 * 4 * max(answers)) + 2 * 40
    for _ in range(80):
        for tenant, prompt, answer in zip("ab", prompts, answers, strict=True):
            for _ in range(6 - server.scheduler.waiting.by_tenant[tenant]):
                server.add([1] * prompt, max_tokens=answer, tenant=tenant, every_logit=True)
        before = {s.arrival: s.num_generated for s in server.live}
        for row in server.step().rows:
            sequence = row.sequence
            reached = min(row.start + row.count, sequence.num_prompt)
            known = done.get(sequence.arrival, 0)
            done[sequence.arrival] = max(known, reached)
            outputs = sequence.num_generated - before[sequence.arrival]
            charge = done[sequence.arrival] - known + 2 * outputs
            work[sequence.tenant] += charge / (weight if sequence.tenant == "b" else 1.0)
        assert abs(work["a"] - work["b"]) <= bound


def test_a_flood_does_not_delay_another_tenant(simulation):
    server = simulation(num_blocks=200, max_batch_tokens=40, max_running=8)
    for _ in range(300):
        server.add([1] * 20, max_tokens=30, tenant="flood")
    for _ in range(40):
        server.step()
    waits = []
    for _ in range(10):
        sequence = server.add([2] * 10, max_tokens=5, tenant="calm")
        start = server.num_steps
        while sequence not in server.done:
            server.step()
        waits.append(server.num_steps - start)
    # Reading and answering take 5 steps alone: a row is had soon, whoever floods.
    assert max(waits) <= 9


def test_a_tenant_without_a_row_is_computed_in_the_next_step(simulation):
    # All rows and the step's whole room are the other's, most of it for prompts.
    server = simulation(num_blocks=400, max_running=4, max_batch_tokens=24)
    for kind in range(60):
        server.add([kind] * 40, tenant="flood", max_tokens=8)
    plan = server.step()
    while len(server.scheduler.running) < 4 or sum(row.count for row in plan.rows) < 24:
        plan = server.step()
    calm = server.add([99] * 10, tenant="calm", max_tokens=2)
    plan = server.step()
    assert [row.count for row in plan.rows if row.sequence is calm] == [10]
    # The row that it took is another's again, and nobody is lost.
    server.run(2000)
    assert len(server.done) == 61


def test_a_weight_that_changes_holds_for_those_who_wait_already(simulation):
    server = simulation(num_blocks=200, max_batch_tokens=40, max_running=8)
    for tenant in "ab" * 200:
        server.add([1] * 4, max_tokens=4, tenant=tenant)

    def share_of_a(steps):
        before = len(server.done)
        for _ in range(steps):
            server.step()
        done = [sequence.tenant for sequence in server.done[before:]]
        return done.count("a") / len(done)

    assert 0.4 < share_of_a(30) < 0.6
    server.scheduler.counters.set_weights({"a": 3.0})
    assert 0.65 < share_of_a(60) < 0.85
    with pytest.raises(InputError, match="weight is out of range"):
        server.scheduler.counters.set_weights({"a": 0.0, "b": 9.0})
    assert server.scheduler.counters.weight("a") == 3.0


def test_being_away_saves_up_no_credit():
    counters = TenantCounters()
    counters.arrives("a")
    counters.charge("a", inputs=1000)
    counters.arrives("b")
    assert counters.counter("b") == 1000
    counters.leaves("a")
    counters.charge("b", inputs=500)
    counters.leaves("b")
    counters.arrives("c")
    assert counters.counter("c") == 1500


def test_outputs_count_twice_and_weights_divide():
    counters = TenantCounters({"b": 4.0})
    counters.charge("a", inputs=3, outputs=2)
    counters.charge("b", inputs=3, outputs=2)
    assert counters.counter("a") == 7
    assert counters.counter("b") == 7 / 4


def test_counters_of_tenants_long_gone_are_swept_out():
    counters = TenantCounters()
    for i in range(10_000):
        counters.arrives(f"t{i}")
        counters.charge(f"t{i}", inputs=1)
        counters.leaves(f"t{i}")
    assert len(counters._counters) < 4000
    counters.arrives("t0")
    assert counters.counter("t0") == 10_000


@pytest.mark.parametrize("weight", [0, -1, float("inf"), float("nan")])
def test_a_weight_out_of_range_is_refused(weight):
    with pytest.raises(InputError, match="weight is out of range"):
        TenantCounters({"a": weight})
