"""The worst of all steps is found, and trying it leaves no trace."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ince.data import Example
from ince.train import TrainConfig
from ince.train.memory import OverLimitError, memory_of
from ince.train.memory_probe import probe, worst_groups
from ince.train.micro_batch import shape_of
from ince.train.run import TrainRun
from ince.train.step import micro_batches
from ince.train.steps import StepPlan

CPU = torch.device("cpu")


def plan_of(lengths_and_targets, **changes):
    examples = [
        Example(tuple(range(n)), (*[False] * (n - min(t, n - 1)), *[True] * min(t, n - 1)), str(i))
        for i, (n, t) in enumerate(lengths_and_targets)
    ]
    options = {
        "packing": False,
        "max_length": 400,
        "batch_tokens": 900,
        "epochs": 1.5,
        "max_steps": None,
        "seed": 7,
    }
    return StepPlan(examples, **(options | changes))


@settings(max_examples=40)
@given(
    sizes=st.lists(st.tuples(st.integers(2, 400), st.integers(1, 300)), min_size=1, max_size=30),
    tokens=st.sampled_from([None, 8, 300, 700]),
    packing=st.booleans(),
)
def test_no_micro_batch_of_the_run_is_worse_than_those_found(sizes, tokens, packing):
    plan = plan_of(sizes, packing=packing)
    found = worst_groups(plan, tokens)
    assert 1 <= len(found) <= 3

    def sizes_of(group):
        num_rows, length = shape_of(group)
        targets = sum(e.num_targets for row in group for e in row.examples)
        return num_rows * length, num_rows * length**2, targets

    everything = [
        sizes_of(group)
        for step in range(plan.num_steps)
        for group in micro_batches(plan.rows(step), tokens)
    ]
    for which in range(3):
        most = max(sizes[which] for sizes in everything)
        assert most == max(sizes_of(group)[which] for group in found)


def test_one_that_is_worst_in_every_way_is_tried_once():
    plan = plan_of([(400, 399), (30, 2), (30, 2)], batch_tokens=400)
    assert len(worst_groups(plan, None)) == 1


def test_a_step_without_targets_is_not_tried():
    plan = plan_of([(400, 0), (30, 2)], batch_tokens=400)
    (group,) = worst_groups(plan, None)
    assert group[0].num_tokens == 30


@pytest.fixture
def run(small_run, tmp_path):
    plan = StepPlan(
        small_run.examples(),
        packing=True,
        max_length=32,
        batch_tokens=64,
        epochs=1,
        max_steps=None,
        seed=7,
    )
    return TrainRun(
        small_run.model(),
        plan,
        TrainConfig(),
        run_dir=tmp_path,
        recipe_digest="d",
        pad_id=2,
        observer=small_run.Watcher(),
    )


def test_trying_leaves_no_trace(run):
    random = torch.get_rng_state()
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    rows = run.plan.rows(0)
    found = probe(rows, model=run.model, memory=memory_of(CPU, None), rehearse=run.rehearse)
    assert found.fits
    assert found.peak_bytes > 0
    assert str(found) == f"{len(rows)} rows of 64 tokens, {found.num_targets} of them learnt"
    assert found.to_dict()["num_targets"] == run.backward().num_targets
    assert torch.equal(torch.get_rng_state(), random) is False  # a real step does leave one
    torch.set_rng_state(random)
    for parameter in run.parameters.values():
        parameter.grad = None
    probe(rows, model=run.model, memory=memory_of(CPU, None), rehearse=run.rehearse)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in run.parameters.values())
    assert not run.model.training
    after = run.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("error", [MemoryError(), OverLimitError(), RuntimeError("out of memory")])
def test_what_is_refused_is_said_to_be(run, error):
    def refuse(_rows):
        raise error

    found = probe(run.plan.rows(0), model=run.model, memory=memory_of(CPU, None), rehearse=refuse)
    assert not found.fits


def test_what_leaves_too_little_room_does_not_fit(run):
    rows = run.plan.rows(0)
    for spare, fits in ((0, True), (1 << 50, False)):
        found = probe(
            rows,
            model=run.model,
            memory=memory_of(CPU, 1 << 50),
            rehearse=run.rehearse,
            spare_bytes=spare,
        )
        assert found.fits is fits


def test_other_errors_are_not_taken_for_it(run):
    def fail(_rows):
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        probe(run.plan.rows(0), model=run.model, memory=memory_of(CPU, None), rehearse=fail)
