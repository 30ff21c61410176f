"""The benchmark of plans runs, and writes what it promises, on a tiny model."""

import pytest


@pytest.mark.long
def test_a_plan_stands_beside_its_measurement(figures_of):
    figures, said = figures_of("plan", timeout=110)
    (found,) = figures.values()
    assert found["planned_bytes"] > 0
    assert found["measured_bytes"] > 0
    weights = found["components"][0]
    assert weights["planned_bytes"] == weights["measured_bytes"]
    assert "tiny nf4" in said
