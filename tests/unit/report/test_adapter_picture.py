import importlib.util
import runpy
import struct
from pathlib import Path

import pytest

from ince.errors import InputError
from ince.lora.insight import compare_adapters
from ince.report.adapter_curves import draw_adapters
from ince.report.adapter_picture import check_can_draw_png, png_bytes

make_insight = runpy.run_path(str(Path(__file__).with_name("adapters.py")))["make_insight"]


@pytest.fixture
def matplotlib():
    """The extra that pictures need; pages do without."""
    return pytest.importorskip("matplotlib", reason="matplotlib is not installed")


def size_of(content):
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")
    return struct.unpack(">II", content[16:24])


@pytest.mark.usefixtures("matplotlib")
def test_one_adapter_and_two(tmp_path):
    first = make_insight(tmp_path / "first")
    second = make_insight(tmp_path / "second", seed=1)
    drawing = draw_adapters(first, names=("$x^2$",))
    width, height = size_of(png_bytes(drawing, title="$x^2$", subtitles=["one"]))
    drawing = draw_adapters(first, second, compare_adapters(first, second), names=("x", "y"))
    both = size_of(png_bytes(drawing, title="x beside y", subtitles=["one", "two"]))
    assert both[0] == width
    assert both[1] > height


@pytest.mark.usefixtures("matplotlib")
def test_nothing_to_draw_is_a_picture_all_the_same(tmp_path):
    drawing = draw_adapters(make_insight(tmp_path / "z", zero=True), names=("z",))
    size_of(png_bytes(drawing, title="z", subtitles=[]))


@pytest.mark.usefixtures("matplotlib")
def test_drawing_leaves_the_settings_of_others(tmp_path):
    import matplotlib as mpl

    before = mpl.rcParams.copy()
    drawing = draw_adapters(make_insight(tmp_path / "a"), names=("a",))
    png_bytes(drawing, title="a", subtitles=[])
    assert mpl.rcParams.copy() == before


def test_without_matplotlib_it_is_said_what_to_do(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="matplotlib") as caught:
        check_can_draw_png()
    assert ".html" in str(caught.value)
