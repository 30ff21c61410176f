import math

import pytest

from ince.report.scores import (
    cost_sentence,
    gain_sentences,
    interval_ends,
    read_scores,
    scale_ends,
)


def score(**changes):
    metric = {
        "name": "exact_match",
        "label": "Exact match",
        "group": "task",
        "unit": "fraction",
        "higher_is_better": True,
        "base": 0.1,
        "tuned": 0.6,
        "echo": None,
        "difference": 0.5,
        "low": 0.4,
        "high": 0.6,
        "num_rows": 200,
    }
    return read_scores({"metrics": [{**metric, **changes}]})[0]


def loss(**changes):
    values = {
        "label": "Held-out loss",
        "unit": "nats",
        "higher_is_better": False,
        "base": 2.0,
        "tuned": 1.5,
        "difference": -0.5,
        "low": -0.6,
        "high": -0.4,
    }
    return score(**{**values, **changes})


def test_fractions_are_shown_as_percentages():
    found = score()
    assert found.shown(found.tuned) == "60.0%"
    assert found.shown_change(found.difference) == "+50.0"
    assert found.shown_interval() == "+40.0 to +60.0"


def test_percentages_are_left_as_they_are():
    assert score(unit="%", tuned=61.25).shown(61.25) == "61.2%"


def test_other_units_keep_three_digits_or_so():
    found = loss()
    assert found.shown(2.0) == "2.000"
    assert found.shown_change(-0.5) == "−0.500"
    assert found.shown_change(0.0) == "0.000"
    assert found.shown(None) == "–"
    assert loss(base=3e-5, tuned=2e-5, difference=-1e-5).shown(3e-5) == "0.0000300"


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (score(), "better"),
        (score(low=-0.6, high=-0.4, difference=-0.5), "worse"),
        (score(low=-0.1, high=0.2), "unclear"),
        (score(low=0, high=0, difference=0), "unclear"),
        (score(higher_is_better=None), "changed"),
        (score(low=None), "unknown"),
        (score(low=math.nan), "unknown"),
        (loss(), "better"),
        (loss(low=0.1, high=0.2), "worse"),
    ],
)
def test_a_verdict_needs_an_interval_without_zero(found, verdict):
    assert found.verdict == verdict
    assert found.verdict_words


def test_an_interval_given_backwards_is_turned():
    found = score(low=0.6, high=0.4)
    assert (found.low, found.high) == (40.0, 60.0)


def test_what_is_missing_is_none_and_the_difference_is_made_up_for():
    found = read_scores({"metrics": [{"name": "my_score", "base": 1, "tuned": 3, "unit": 5}]})[0]
    assert found.label == "my score"
    assert found.difference == 2.0
    assert found.higher_is_better is None
    assert found.shown_interval() == ""


@pytest.mark.parametrize("metrics", [None, "x", [None, 3, {}, {"label": " "}]])
def test_what_is_no_metric_is_passed_over(metrics):
    assert read_scores({"metrics": metrics}) == []


def test_better_is_upward_whatever_the_direction():
    gained, fell = score(), loss()
    for found in (gained, fell):
        low, middle, high = interval_ends(found, [gained, fell])
        assert 0 < low < middle < high <= 1
    assert scale_ends([gained, fell]) == (0.0, 1.0)
    assert scale_ends([score(low=0, high=0, difference=0)]) == (-1.0, 1.0)


def test_the_headline_names_one_gain_of_each_group_first():
    scores = [
        score(),
        score(label="Other match"),
        loss(group="all"),
        score(label="Reading", group="english"),
    ]
    assert gain_sentences(scores) == [
        "Exact match rose from 10.0% to 60.0%.",
        "Held-out loss fell from 2.000 to 1.500.",
    ]


def test_the_headline_claims_nothing_uncertain():
    assert gain_sentences([]) == []
    assert gain_sentences([score(low=-0.1)]) == ["No gain can be told from chance."]
    worse = score(base=0.6, tuned=0.1, difference=-0.5, low=-0.6, high=-0.4)
    assert gain_sentences([worse]) == [
        "Nothing was gained.",
        "Exact match fell from 60.0% to 10.0%.",
    ]


def test_what_english_paid():
    english = {"group": "english", "label": "English bits per byte", "base": 1.0, "unit": "bits"}
    assert cost_sentence([loss()]) is None
    worse = loss(**english, tuned=1.02, difference=0.02, low=0.01, high=0.03)
    assert cost_sentence([worse]) == "English lost 2.0%: bits per byte 1.000 before, 1.020 after."
    unclear = loss(**english, tuned=1.01, difference=0.01, low=-0.01, high=0.03)
    assert "can be told from chance" in cost_sentence([unclear])
    better = loss(**english, tuned=0.9, difference=-0.1, low=-0.2, high=-0.05)
    assert cost_sentence([better]).startswith("English lost nothing: ")
