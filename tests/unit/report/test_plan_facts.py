"""The record's plan as rows: whatever stands there is shown as text, and nothing is invented."""

import pytest

from ince.report.plan_facts import plan_rows, plan_sentence

PLAN = {
    "components": [{"name": "weights", "planned_bytes": 1024, "measured_bytes": 2048}],
    "planned_bytes": 3 * 2**20,
    "measured_bytes": 2 * 2**20,
    "planned_tokens_per_second": 90.0,
    "measured_tokens_per_second": 100.0,
    "overheads": "learnt from an earlier run on this device",
    "rate": "measured on this device",
}


def test_components_the_peak_and_the_speed_with_their_errors():
    assert plan_rows({"plan": PLAN}) == [
        ("weights", "1.00 KiB", "2.00 KiB", "-50.0%"),
        ("peak of a step", "3.00 MiB", "2.00 MiB", "+50.0%"),
        ("tokens in a second", "90", "100", "-10.0%"),
    ]
    assert "learnt from an earlier run" in plan_sentence({"plan": PLAN})


@pytest.mark.parametrize(
    "plan", [None, 3, {}, {"components": "x"}, {"components": []}, {"planned_bytes": 3}]
)
def test_without_a_measurement_there_is_no_table(plan):
    assert plan_rows({"plan": plan}) == []


def test_odd_values_are_shown_and_not_computed_with():
    plan = {"components": [{"name": "<b>", "planned_bytes": "x", "measured_bytes": 0}, 7]}
    assert plan_rows({"plan": plan})[0] == ("<b>", "0 B", "0 B", "")
