"""Time by formula, and the roofline in circulation."""

from dataclasses import replace

import pytest

from ince.errors import InputError
from ince.plan import KNOWN_SHAPES, Rate, Setup, find_device, plan_time, rate_of
from ince.plan.duration import flops_per_token
from ince.plan.weights import filed_bytes

H100 = find_device("h100")


@pytest.mark.parametrize(("name", "figure"), [("Llama-3-8B", 8_786), ("Llama-3-70B", 949)])
def test_the_roofline_of_an_h100_at_40_percent(name, figure):
    shape = KNOWN_SHAPES[name]
    rate = rate_of(H100)
    # The figure counts products of the base and the head, three passes over each.
    per_token = flops_per_token(shape, Setup(activations="recompute"))["base"]
    per_token += 6 * shape.counts.head
    assert round(rate.flops / per_token) == figure


def test_money_is_hours_times_devices():
    shape = KNOWN_SHAPES["Llama-3-8B"]
    one = plan_time(shape, Setup(), rate_of(H100), num_tokens=10_000_000, price=3)
    assert one.seconds == pytest.approx(10_000_000 / one.tokens_per_second)
    assert one.cost == pytest.approx(one.seconds / 1200)
    many = Setup(num_devices=8)
    eight = plan_time(shape, many, rate_of(H100, 8), num_tokens=10_000_000, price=3)
    assert eight.cost == pytest.approx(one.cost)
    assert eight.seconds == pytest.approx(one.seconds / 8)


def test_a_week_of_an_h100_is_about_500_dollars():
    assert pytest.approx(500, rel=0.01) == 7 * 24 * 3


def test_recomputing_takes_about_a_third_more():
    shape = KNOWN_SHAPES["Llama-3-70B"]
    kept, recomputed = (
        plan_time(shape, Setup(activations=way), rate_of(H100)).tokens_per_second
        for way in ("keep", "recompute")
    )
    assert 1.3 < kept / recomputed < 1.6


@pytest.mark.parametrize("name", ["4090", "rtx 4090", "A100-80g", "l40s"])
def test_a_device_is_found_as_people_write_it(name):
    assert find_device(name).memory_bytes >= 24 * 2**30


def test_an_unknown_device_is_refused_with_a_near_one():
    with pytest.raises(InputError, match="did you mean 'H100'"):
        find_device("h1000")


def test_a_file_is_read_and_written_once_a_step():
    shape = KNOWN_SHAPES["SmolLM2-135M"]
    paged = Setup(
        optimizer="paged_adamw", device_moment_bytes=0, on_cpu=True, length=512, batch_tokens=1024
    )
    fast = Rate(1e11, None, None, 1.0, "", is_assumed=False)
    slow = replace(fast, filed=1e9)
    # Of a weight two moments of four bytes, to and fro, and its value before the step.
    num_bytes = 20 * paged.num_trainable(shape)
    assert filed_bytes(shape, paged) == pytest.approx(num_bytes, rel=0.01)

    def seconds(setup, rate):
        return 1024 / plan_time(shape, setup, rate).tokens_per_second

    assert seconds(paged, slow) - seconds(paged, fast) == pytest.approx(num_bytes / 1e9, rel=0.01)
    held = paged.with_changes(optimizer="adamw")
    assert seconds(held, slow) == seconds(held, fast)
