import io
import json
import math
import struct

import pytest
from rich.console import Console

from ince.report.lr_find import range_drawing, range_facts, shown_rate
from ince.report.lr_find_terminal import lr_find_lines
from ince.report.search_picture import lr_find_png


def content(num=40, **changes):
    points = []
    for i in range(num):
        lr = 1e-6 * 10 ** (5 * i / 39)
        loss = 4.0 - 2 * max(0.0, math.log10(lr) + 4) if lr < 1e-2 else 300 * lr
        points.append({"step": i + 1, "lr": lr, "loss": loss, "smoothed": loss})
    suggestion = {
        "lr": 1e-3,
        "steepest": 1e-3,
        "minimum": 1e-2,
        "below_minimum": 1e-3,
        "remark": "",
    }
    return {
        "status": "diverged",
        "low": 1e-6,
        "high": 1e-1,
        "num_steps": 60,
        "points": points,
        "suggestion": suggestion,
        "why_none": None,
    } | changes


def printed(lines, width=80):
    console = Console(file=io.StringIO(), width=width)
    for line in lines:
        console.print(line)
    return console.file.getvalue()


def test_the_terminal_shows_curve_and_suggestion():
    text = printed(lr_find_lines(content(), width=80))
    assert all(len(line) <= 80 for line in text.splitlines())
    for words in ("train.lr=1e-3", "1e-6", "1e-1", "┊", "step 40 of 60: the loss diverged"):
        assert words in text


def test_what_blew_up_does_not_flatten_the_fall():
    drawing = range_drawing(content())
    assert drawing.y[1] < 6
    assert drawing.y[0] < 0.1
    assert drawing.x == (-6, -1)


@pytest.mark.parametrize(
    "changes",
    [
        {"points": []},
        {"points": [3, {"lr": "x"}, {"lr": -1, "loss": 1, "smoothed": 1}]},
        {"points": None, "suggestion": 7, "low": 0, "high": "x", "num_steps": None},
    ],
)
def test_a_test_without_points_is_words_alone(changes):
    odd = content(**changes)
    assert range_drawing(odd) is None
    assert "suggestion" in printed(lr_find_lines(odd, width=80))


def test_no_suggestion_says_why():
    facts = dict(range_facts(content(suggestion=None, why_none="the loss did not fall")))
    assert facts["suggestion"] == "none: the loss did not fall"
    assert "steepest" not in facts


def test_one_level_has_a_height():
    level = content(
        points=[{"lr": 1e-5, "loss": 2, "smoothed": 2}, {"lr": 1e-4, "loss": 2, "smoothed": 2}]
    )
    drawing = range_drawing(level)
    assert drawing.y[0] < 2 < drawing.y[1]
    json.dumps(drawing.y)


@pytest.mark.parametrize(
    ("rate", "words"), [(2.4e-4, "2.4e-4"), (1e-3, "1e-3"), (0.1, "1e-1"), (5.37e-4, "5.4e-4")]
)
def test_rates_have_two_digits(rate, words):
    assert shown_rate(rate) == words
    assert float(words) == pytest.approx(rate, rel=0.05)


@pytest.mark.parametrize("changes", [{}, {"points": []}, {"suggestion": None, "why_none": "$x$"}])
def test_the_picture(changes):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    picture = lr_find_png(content(**changes))
    assert picture.startswith(b"\x89PNG")
    assert struct.unpack(">II", picture[16:24]) == (1350, 750)
