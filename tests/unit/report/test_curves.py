import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ince.report.curves import draw_chart, nice_ticks, smoothed, thinned
from ince.report.run_files import Curve

FINITE = st.floats(-1e100, 1e100)


def curve_of(values):
    curve = Curve()
    for step, value in enumerate(values, start=1):
        curve.add(step, value)
    return curve


def chart_of(values, **more):
    arguments = {"steps": (1, max(1, len(values))), "show": lambda v: f"{v:.3g}", "figure": ""}
    return draw_chart("loss", "Loss", curve_of(values), **{**arguments, **more})


def test_thinning_keeps_every_spike():
    values = [1.0] * 100_000
    values[54_321] = 99.0
    values[77_777] = -5.0
    points = thinned(curve_of(values))
    assert len(points) <= 480
    assert (54_322.0, 99.0) in points
    assert (77_778.0, -5.0) in points
    assert points == sorted(points)


def test_few_points_are_kept_as_they_are():
    assert thinned(curve_of([3, 1, 2])) == [(1, 3), (2, 1), (3, 2)]


def test_the_mean_of_a_line_is_the_line():
    points = smoothed(curve_of([2.0] * 1_000))
    assert len(points) == 240
    assert {round(value, 9) for _, value in points} == {2.0}
    assert points[0][0] == 1
    assert points[-1][0] == 1_000


@given(FINITE, FINITE)
def test_ticks_are_few_and_inside(a, b):
    low, high = min(a, b), max(a, b)
    ticks = nice_ticks(low, high)
    assert 1 <= len(ticks) <= 12
    slack = 1e-6 * (high - low) + abs(low) * 1e-9
    assert all(low - slack <= tick <= high + slack for tick in ticks)


def test_ticks_are_round():
    assert nice_ticks(0, 4.1) == [0, 2, 4]
    assert nice_ticks(0, 1) == [0, 0.5, 1.0]


def test_an_empty_curve_draws_nothing():
    assert chart_of([]) is None


@given(st.lists(FINITE, min_size=1, max_size=60), st.booleans(), st.booleans())
def test_any_curve_is_drawn_with_finite_coordinates(values, smooth, from_zero):
    chart = chart_of(values, smooth=smooth, from_zero=from_zero)
    for line in chart.lines:
        assert re.fullmatch(r"M-?\d+,-?\d+( -?\d+,-?\d+)*", line.path)
    for tick in (*chart.x_ticks, *chart.y_ticks):
        assert re.fullmatch(r"-?[\d.]+%", tick.at)


def test_one_step_is_a_dot():
    assert chart_of([2.5]).lines[0].dots == [("50%", "50%")]


def test_a_blown_up_step_does_not_flatten_the_rest_and_is_told():
    values = [2.0 - i / 200 for i in range(200)]
    values[50] = 1e9
    chart = chart_of(values)
    assert chart.note == "1 far above the drawing, up to 1e+09"
    last = chart.lines[0].path.split()[-1]
    first = chart.lines[0].path.split()[0][1:]
    assert int(last.split(",")[1]) - int(first.split(",")[1]) > 300


def test_the_description_says_what_the_drawing_shows():
    chart = chart_of([4.0, 2.0, 1.0, 1.5], evaluations=curve_of([3.5, 1.25]))
    assert chart.description == (
        "Loss by step, 1 to 4: first 4, last 1.5, least 1, greatest 4. "
        "Held-out: first 3.5, last 1.25."
    )


@pytest.mark.parametrize("scale", [1e-300, 1e99])
def test_extreme_values_are_drawn(scale):
    assert chart_of([scale, 0.5 * scale, 0.25 * scale]).lines
