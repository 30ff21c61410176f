"""The figures of 70B, and properties: more of anything never takes less."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ince.errors import InputError
from ince.plan import KNOWN_SHAPES, Overheads, Setup, fill_pages, plan_memory

LLAMA_70B = KNOWN_SHAPES["Llama-3-70B"]
GIB_48 = 48 * 2**30


def parts_of(setup, shape=LLAMA_70B):
    return plan_memory(shape, setup, Overheads.none())


def tensors_of(plan):
    """Weights, adapters, their gradients and moments: what the figures count."""
    parts = {**plan.moments[-1].parts}
    parts.pop("work", None)
    return sum(parts.values())


def test_rank_64_on_70b_does_not_fit_48_gib_and_rank_16_does():
    wide, narrow = (parts_of(Setup(r=r, activations="recompute")) for r in (64, 16))
    assert round(tensors_of(wide) / 1e9, 1) == 52.8
    assert round(tensors_of(narrow) / 1e9, 1) == 42.8
    assert wide.peak.total > GIB_48 > narrow.peak.total


@pytest.mark.parametrize("optimizer", ["paged_adamw", "adamw_8bit", "paged_adamw_8bit"])
def test_paging_or_8_bit_states_make_rank_64_fit(optimizer):
    plan = parts_of(Setup(r=64, activations="recompute", optimizer=optimizer))
    assert plan.peak.total < GIB_48
    assert ("moments" in plan.below) == optimizer.startswith("paged")


def test_recomputed_activations_and_the_dequantized_weight_of_70b():
    plan = parts_of(Setup(activations="recompute"))
    parts = {moment.name: moment.parts for moment in plan.moments}
    assert parts["loss"]["activations"] == (80 + 1) * 2048 * 8192 * 2
    assert 80 * 2048 * 8192 * 2 == 2_684_354_560  # the 2.7 GB
    # Gate and up are expanded side by side for a moment: 0.47 GB each.
    assert parts["backward, last"]["dequantization"] == 2 * 469_762_048


def test_full_fine_tuning_of_70b():
    full = Setup(method="full", master_bytes=0, activations="recompute")
    weights = parts_of(full).loaded.parts
    assert round(sum(weights.values()) / 1e9) == 706  # 141 of weights, 564 of moments
    assert round(tensors_of(parts_of(full)) / 1e12, 2) == 0.99
    master = full.with_changes(gradient_bytes=2, master_bytes=4)
    assert round(tensors_of(parts_of(master)) / 1e12, 2) == 1.13


def test_65b_from_780_gb_to_less_than_48():
    shape = KNOWN_SHAPES["Llama-65B"]
    in_16_bits = Setup(method="full", gradient_bytes=2, master_bytes=0)
    assert tensors_of(parts_of(in_16_bits, shape)) > 780e9
    plan = parts_of(
        Setup(r=64, activations="recompute", length=512, optimizer="paged_adamw"), shape
    )
    assert plan.peak.total < 48e9


SHAPES = st.sampled_from(sorted(KNOWN_SHAPES)).map(KNOWN_SHAPES.__getitem__)
SETUPS = st.builds(
    Setup,
    method=st.sampled_from(["full", "lora", "qlora"]),
    r=st.integers(1, 128),
    num_rows=st.integers(1, 8),
    length=st.integers(64, 8192),
    value_bytes=st.sampled_from([2, 4]),
    activations=st.sampled_from(["keep", "recompute", "offload"]),
    optimizer=st.sampled_from(["adamw", "adamw_8bit", "paged_adamw"]),
    on_cpu=st.booleans(),
)
MORE = st.sampled_from(["r", "num_rows", "length"])


@given(SHAPES, SETUPS, MORE)
def test_more_never_takes_less(shape, setup, name):
    # A factor that a rank more takes over 4,095 numbers is one that 8 bits are enough for.
    assume(name != "r" or setup.optimizer != "adamw_8bit")
    more = setup.with_changes(**{name: getattr(setup, name) + 1})
    assert plan_memory(shape, more).peak.total >= plan_memory(shape, setup).peak.total


@given(SHAPES, SETUPS)
def test_parts_are_not_negative_and_add_up(shape, setup):
    plan = plan_memory(shape, setup)
    assert all(size > 0 for moment in plan.moments for size in moment.parts.values())
    assert plan.peak.total == max(moment.total for moment in plan.moments)
    assert plan.to_dict()["peak_bytes"] == sum(plan.peak.parts.values())


@given(SHAPES, SETUPS)
def test_recomputing_and_sharding_never_take_more(shape, setup):
    kept = plan_memory(shape, setup.with_changes(activations="keep")).peak.total
    recomputed = plan_memory(shape, setup.with_changes(activations="recompute")).peak.total
    offloaded = plan_memory(shape, setup.with_changes(activations="offload")).peak.total
    assert offloaded <= recomputed <= kept * 1.5
    eight = plan_memory(shape, setup.with_changes(num_devices=8))
    assert eight.loaded.total <= plan_memory(shape, setup).loaded.total


def test_pages_that_may_stay_give_way_to_the_limit():
    setup = Setup(r=64, activations="recompute", optimizer="paged_adamw", device_moment_bytes=None)
    assert fill_pages(LLAMA_70B, setup, 80 * 2**30) == setup
    filled = fill_pages(LLAMA_70B, setup, GIB_48, Overheads.none())
    peak = parts_of(filled).peak.total
    assert GIB_48 * 0.99 < peak <= GIB_48
    assert 0 < filled.device_moment_bytes < 8 * setup.num_trainable(LLAMA_70B)


@pytest.mark.parametrize("changes", [{"optimizer": "sgd"}, {"r": 0}, {"length": 0}])
def test_a_setup_that_cannot_be_is_refused(changes):
    with pytest.raises(InputError):
        Setup(**changes)


def test_a_compact_heap_has_no_holes_to_count():
    shape = KNOWN_SHAPES["SmolLM2-135M"]
    setup = Setup(length=512, value_bytes=4, on_cpu=True)
    compact = setup.with_changes(has_compact_heap=True)
    plain, without = plan_memory(shape, setup).peak, plan_memory(shape, compact).peak
    # Tensors are the same; what lies between them is a share that any allocator has.
    for part in ("weights", "adapters", "activations"):
        assert plain.parts.get(part) == without.parts.get(part)
    moving = without.total - without.parts["fragmentation"]
    assert without.parts["fragmentation"] < 0.02 * moving
    assert plain.parts["fragmentation"] > 5 * without.parts["fragmentation"]
    # On a GPU there is no such heap.
    gpu = setup.with_changes(on_cpu=False)
    assert plan_memory(shape, gpu) == plan_memory(shape, gpu.with_changes(has_compact_heap=True))
