from hypothesis import given
from hypothesis import strategies as st

from ince.report.terminal_plot import Mark, Series, plot_lines

ANY = st.floats(-1e12, 1e12)


def drawn(series, *, width=30, height=4, **more):
    arguments = {
        "x": (0.0, 1.0),
        "y": (0.0, 1.0),
        "x_ticks": [(0.0, "0"), (1.0, "1")],
        "y_ticks": [(0.0, "low"), (1.0, "high")],
    }
    lines = plot_lines(series, width=width, height=height, **(arguments | more))
    return [line.plain for line in lines]


def test_a_line_goes_from_corner_to_corner():
    lines = drawn([Series([(0.0, 0.0), (1.0, 1.0)])], width=14, height=4)
    starts = [min(i for i, c in enumerate(line) if "\u2800" < c <= "\u28ff") for line in lines[:4]]
    assert starts == sorted(starts, reverse=True)
    assert (starts[0], starts[-1]) == (12, 6)
    assert lines[0].startswith("high ┤")
    assert lines[3].startswith(" low ┤")
    assert lines[4:] == ["     └┬──────┬", "      0      1"]


def test_dots_stand_alone_and_later_curves_color_what_they_share():
    series = [
        Series([(0.0, 0.0), (1.0, 1.0)], style="red", joined=False),
        Series([(0.0, 0.0)], style="blue"),
    ]
    lines = plot_lines(series, x=(0, 1), y=(0, 1), x_ticks=[], y_ticks=[], width=12, height=2)
    assert sum("\u2800" < c <= "\u28ff" for line in lines for c in line.plain) == 2
    assert "blue" in [str(span.style) for span in lines[1].spans]


def test_marks_stand_behind():
    lines = drawn([Series([(0.0, 0.5), (1.0, 0.5)])], marks=[Mark(0.5)])
    assert sum("┊" in line for line in lines) == 3


def test_what_lies_outside_is_not_drawn():
    lines = drawn([Series([(0.0, 5.0), (1.0, 5.0)])])
    assert not any("\u2800" < c <= "\u28ff" for line in lines for c in line)


def test_labels_that_have_no_room_are_left_out():
    ticks = [(place / 20, f"tick {place}") for place in range(21)]
    (_, words) = drawn([], x_ticks=ticks)[-2:]
    assert "tick 0" in words
    assert len(words) <= 30
    assert "tick 0tick" not in words.replace(" ", "", 1)


@given(
    st.lists(st.tuples(ANY, ANY), max_size=30),
    st.tuples(ANY, ANY),
    st.tuples(ANY, ANY),
    st.integers(1, 120),
    st.integers(1, 20),
)
def test_any_points_give_a_box_of_the_size_asked_for(points, x, y, width, height):
    lines = plot_lines(
        [Series(points)],
        x=(min(x), max(x)),
        y=(min(y), max(y)),
        x_ticks=[(x[0], "a")],
        y_ticks=[(y[0], "b")],
        width=width,
        height=height,
    )
    assert len(lines) == height + 2
    assert max(len(line.plain) for line in lines) <= max(width, 11)
