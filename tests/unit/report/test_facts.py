import pytest

from ince.report.facts import evenly, facts, in_bytes, in_full, in_seconds, in_time


def test_evenly_keeps_both_ends():
    assert evenly(list(range(100)), 5) == [0, 25, 50, 74, 99]
    assert evenly([1, 2], 5) == [1, 2]


def test_unknown_values_are_left_out():
    found = facts([("a", 1), ("b", None), ("c", ""), ("d", {}), ("e", False)], mono=("a",))
    assert [(fact.name, fact.value, fact.mono) for fact in found] == [
        ("a", "1", True),
        ("e", "false", False),
    ]


@pytest.mark.parametrize("value", [None, "x", -1, float("nan"), 1e30])
def test_what_is_no_duration_is_none(value):
    assert in_seconds(value) is None


def test_quantities_in_words():
    assert in_seconds(75) == "1 min 15 s"
    assert in_bytes(3 * 2**29) == "1.50 GiB"
    assert in_bytes(0) is None
    assert in_full(1234567) == "1,234,567"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2026-03-01T14:05:11+02:00", "2026-03-01 12:05 UTC"),
        ("2026-03-01T14:05:11", "2026-03-01 14:05"),
        ("yesterday", "yesterday"),
        (17, None),
    ],
)
def test_times_are_shown_in_utc(value, expected):
    assert in_time(value) == expected
