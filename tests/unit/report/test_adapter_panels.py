import pytest

from ince.report.adapter_panels import PanelGroup


def group(*, is_log, y):
    return PanelGroup("t", "l", "x", "y", (), (1.0, 5.0), y, (), (), is_log, ())


def test_a_linear_axis():
    place = group(is_log=False, y=(0.0, 10.0)).place
    assert place((1.0, 0.0)) == (0.0, 0.0)
    assert place((5.0, 10.0)) == (1.0, 1.0)
    assert place((3.0, 5.0)) == (0.5, 0.5)


def test_a_logarithmic_axis_is_bounded():
    place = group(is_log=True, y=(0.01, 100.0)).place
    assert place((1.0, 1.0))[1] == pytest.approx(0.5)
    assert place((1.0, 0.0))[1] == -1.0
    assert place((1.0, 1e300))[1] == 2.0


def test_a_single_place_is_in_the_middle():
    one = PanelGroup("t", "l", "x", "y", (), (3.0, 3.0), (0.0, 1.0), (), (), False, ())
    assert one.place((3.0, 0.5)) == (0.5, 0.5)
