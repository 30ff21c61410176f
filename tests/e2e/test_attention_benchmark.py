"""The benchmark of attention runs, and its three ways compute the same."""

import math


def test_figures_are_written_and_all_ways_agree(figures_of):
    figures, _ = figures_of("attention", timeout=110)
    assert {"cpu", "isa", "ince_isa", "threads", "python", "torch"} <= set(figures)
    assert set(figures["packed"]) == {"ince", "masked", "separate"}
    for each in figures["packed"].values():
        assert all(math.isfinite(value) for value in each.values())
        assert each["both_ms"] > each["forward_ms"] > 0
        assert each["difference"] < 1e-4
    assert figures["packed"]["ince"]["ratio"] == 1
