"""The benchmark of serving's operators runs, and its ways of attention compute the same."""

import math


def test_figures_are_written_and_attention_agrees(figures_of):
    figures, _ = figures_of("serving_ops", timeout=110)
    assert {"cpu", "ince_isa", "threads", "python", "torch"} <= set(figures)
    for section in ("calls", "layers", "dense", "table", "attention"):
        for ways in figures[section].values():
            assert ways["ince"]["ratio"] == 1
            timed = [way for way in ways.values() if isinstance(way, dict)]
            assert all(math.isfinite(way["us"]) and way["us"] > 0 for way in timed)
    assert all(each["difference"] < 1e-4 for each in figures["attention"].values())
