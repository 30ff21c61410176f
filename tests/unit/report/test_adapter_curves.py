import runpy
from pathlib import Path

import pytest

from ince.lora.insight import compare_adapters
from ince.report.adapter_curves import draw_adapters

make_insight = runpy.run_path(str(Path(__file__).with_name("adapters.py")))["make_insight"]


@pytest.fixture
def first(tmp_path):
    return make_insight(tmp_path / "first")


@pytest.fixture
def second(tmp_path):
    return make_insight(tmp_path / "second", seed=1, r=6)


def test_one_adapter_is_a_line_a_layer_by_kind(first):
    spectra, sizes = draw_adapters(first, names=("x",)).groups
    assert [panel.title for panel in spectra.panels] == ["q_proj", "down_proj"]
    for panel in spectra.panels:
        assert [stroke.depth for stroke in panel.strokes] == [0.0, 0.5, 1.0]
        layers = [layer for layer in first.layers if layer.kind == panel.title]
        for stroke, layer in zip(panel.strokes, layers, strict=True):
            assert stroke.points == tuple(enumerate(layer.singular_values, 1))
    own = [stroke for stroke in sizes.panels[0].strokes if stroke.style == "first"]
    expected = [layer.frobenius_norm for layer in first.layers if layer.kind == "q_proj"]
    assert [y for _, y in own[0].points] == expected


def test_what_is_drawn_lies_in_the_frame(first, second):
    comparison = compare_adapters(first, second)
    for drawing in (
        draw_adapters(first, names=("x",)),
        draw_adapters(first, second, comparison, names=("x", "y")),
    ):
        for group in drawing.groups:
            for panel in group.panels:
                for stroke in panel.strokes:
                    for x, y in map(group.place, stroke.points):
                        assert -1e-9 <= x <= 1 + 1e-9
                        assert -1e-9 <= y <= 1 + 1e-9
            for tick, _ in group.y_ticks:
                assert group.y[0] <= tick <= group.y[1]


def test_two_adapters_are_medians_in_bands(first, second):
    comparison = compare_adapters(first, second)
    drawing = draw_adapters(first, second, comparison, names=("x", "y"))
    panel = drawing.groups[0].panels[0]
    assert [stroke.style for stroke in panel.strokes] == ["first", "second"]
    assert [len(stroke.points) for stroke in panel.strokes] == [4, 6]
    values = sorted(layer.spectral_norm for layer in first.layers if layer.kind == "q_proj")
    assert panel.strokes[0].points[0] == (1.0, values[1])
    assert panel.areas[0].lower[0] == (1.0, values[0])
    assert panel.areas[0].upper[0] == (1.0, values[2])
    assert drawing.groups[0].legend == (("first", "x"), ("second", "y"))


def test_an_update_of_zero_is_said_and_not_drawn(tmp_path):
    drawing = draw_adapters(make_insight(tmp_path / "z", zero=True), names=("x",))
    assert drawing.groups == ()
    assert "zero" in drawing.notes[0]


def test_many_layers_and_kinds_are_thinned(tmp_path):
    kinds = [f"kind_{n}" for n in range(15)]
    found = make_insight(tmp_path / "m", kinds=kinds, num_layers=1)
    drawing = draw_adapters(found, names=("x",))
    assert len(drawing.groups[0].panels) == 12
    assert "3 kinds" in drawing.notes[0]
    deep = make_insight(tmp_path / "d", kinds=["q"], num_layers=100)
    strokes = draw_adapters(deep, names=("x",)).groups[0].panels[0].strokes
    assert len(strokes) == 64
    assert (strokes[0].depth, strokes[-1].depth) == (0.0, 1.0)


def test_layers_without_a_number(tmp_path):
    found = make_insight(tmp_path / "h", num_layers=0, extra=["lm_head"])
    spectra, sizes = draw_adapters(found, names=("x",)).groups
    assert spectra.panels[0].title == "lm_head"
    assert len(sizes.panels[0].strokes[0].points) == 1
