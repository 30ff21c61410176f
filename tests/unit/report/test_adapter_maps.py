import runpy
from pathlib import Path

import pytest

from ince.lora.insight import compare_adapters
from ince.report.adapter_maps import heat_lead, heat_maps

make_insight = runpy.run_path(str(Path(__file__).with_name("adapters.py")))["make_insight"]


def test_the_heat_maps_stand_beside_the_baseline(tmp_path):
    first = make_insight(tmp_path / "first")
    second = make_insight(tmp_path / "second", seed=1, r=6)
    comparison = compare_adapters(first, second)
    maps = list(heat_maps(comparison))
    titles = [each.title for each in maps]
    assert titles[:3] == ["A, mean of 6 layers", "ΔW, mean of 6 layers", "random directions"]
    assert [title.split(":")[0] for title in titles[3:]] == [
        "ΔW, most alike",
        "ΔW, in the middle",
        "ΔW, least alike",
    ]
    assert maps[2].values[-1][-1] == pytest.approx(6 / 12)
    assert maps[1].values == comparison.mean_phi("delta")[0].values
    assert "random 0.500" in maps[1].figure


def test_a_single_layer_is_drawn_once(tmp_path):
    first = make_insight(tmp_path / "first", num_layers=1, kinds=["q"])
    maps = list(heat_maps(compare_adapters(first, first)))
    assert [each.title for each in maps] == [
        "A, its only layer",
        "ΔW, its only layer",
        "random directions",
    ]


def test_updates_of_zero_have_no_map_of_theirs(tmp_path):
    first = make_insight(tmp_path / "first")
    zero = make_insight(tmp_path / "zero", zero=True)
    assert [each.title for each in heat_maps(compare_adapters(first, zero))] == [
        "A, mean of 6 layers"
    ]


def test_the_lead_says_which_is_down_and_which_across():
    assert "x (i, down) and y (j, across)" in heat_lead(("x", "y"))
