"""Benchmarks run, and write every figure they promise; how large the figures are is not judged."""

import math

import pytest

LIBRARIES = ("ince", "peft")
MIXES = ("1 adapter", "4 adapters", "16 adapters", "zipf")


@pytest.fixture(scope="module")
def figures(figures_of):
    """Of `benchmarks/lora_ops.py --quick`, on tiny models."""
    found, _ = figures_of("lora_ops", timeout=110)
    return found


def is_figure(value):
    return isinstance(value, float) and math.isfinite(value) and value > 0


def test_figures_say_what_they_were_taken_with(figures):
    assert {"cpu", "isa", "cores", "memory_gb", "threads"} <= set(figures["machine"])
    assert set(figures["versions"]) == {"python", "torch", "transformers", *LIBRARIES}
    assert "lora_ops.py --quick" in figures["command"]


@pytest.mark.parametrize("section", ["mixed-1024", "mixed-2048", "mixed-135m", "prompts"])
def test_mixed_batches_are_divided_by_the_base(figures, section):
    found = figures[section]
    mixes = MIXES if section != "prompts" else ("zipf",)
    for library in LIBRARIES:
        for mix in mixes:
            each = found["calls"][f"{library}, {mix}"]
            assert all(is_figure(each[key]) for key in ("ratio", "ratio_p5", "ms"))
    if section != "prompts":
        assert all(is_figure(found["calls"][f"ince, {mix}"]["new_set_ratio"]) for mix in mixes)
    assert is_figure(found["base_ms"])
    assert found["worst"] == max(found["calls"][f"ince, {mix}"]["ratio"] for mix in mixes)


@pytest.mark.parametrize("section", ["mixed-1024", "mixed-2048", "mixed-135m", "prompts"])
def test_both_libraries_compute_the_same(figures, section):
    assert figures[section]["difference"] < 1e-5


def test_loading_knows_the_first_and_the_last(figures):
    found = figures["load"]
    for library in LIBRARIES:
        assert all(is_figure(value) for value in found[library].values())
        assert {"first_ms", "last_ms", "growth"} <= set(found[library])
    assert is_figure(found["first_ratio"])
    assert is_figure(found["last_ratio"])


def test_swaps_are_timed_from_memory_and_from_disk(figures):
    names = ["ince, slot", *(f"{key}, {of}" for key in LIBRARIES for of in ("tensors", "folder"))]
    assert all(is_figure(figures["swap"][name]["ms"]) for name in names)


def test_creating_knows_the_first_call(figures):
    for library in LIBRARIES:
        assert is_figure(figures["create"][library]["first_s"])
        assert is_figure(figures["create"][library]["median_s"])
    assert is_figure(figures["create"]["ratio"])
