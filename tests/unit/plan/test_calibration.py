"""What is measured is kept, what runs taught is used and said, what is damaged is made again."""

import json

import pytest

from ince.plan import Setup
from ince.plan.calibration import Calibration, RunFact, calibration_file, this_device


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("INCE_CACHE", str(tmp_path))


def fact(**changes):
    values = {
        "held_bytes": 1000,
        "measured_held_bytes": 1500,
        "moving_bytes": 100 * 2**20,
        "fixed_bytes": 5 * 2**20,
        "measured_moving_bytes": 115 * 2**20,
        "seconds": 1.0,
        "measured_seconds": 1.5,
    }
    return RunFact(**values | changes)


def test_a_rate_is_measured_once_and_kept():
    device = this_device("cpu")
    first = Calibration.read(device).rate(4, "cpu")
    assert first.flops > 1e8
    assert not first.is_assumed
    assert first.filed is not None
    assert first.filed > 1e6
    again = Calibration.read(device).rate(4, "cpu")
    assert (again.flops, again.expanded, again.moved) == (first.flops, first.expanded, first.moved)


def test_what_runs_taught_is_used_and_said():
    found = Calibration("x", rates={"32 bits": {"flops": 1e9, "expanded": 1e9, "moved": 1e9}})
    assert "assumed" in found.overheads(Setup(on_cpu=True)).source
    for measured in (1.4, 1.5, 9.0):  # one odd run decides nothing
        found.learn(fact(measured_seconds=measured))
    found = Calibration.read("x")
    overheads = found.overheads(Setup(on_cpu=True))
    assert (overheads.framework_bytes, round(overheads.fragmentation, 6)) == (500, 0.1)
    assert "3 earlier runs" in overheads.source
    compact = found.overheads(Setup(on_cpu=True, has_compact_heap=True))
    assert 0 < compact.first_use_bytes < overheads.first_use_bytes
    rate = found.rate(4, "cpu")
    assert rate.correction == 1.5
    assert "3 earlier runs" in rate.source


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"format": "ince-plan/1"}', '{"format": "ince-plan/1", "runs": 3}']
)
def test_a_file_that_cannot_be_read_is_one_that_is_not_there(text):
    path = calibration_file("x")
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert Calibration.read("x").runs == []


def test_a_run_that_cannot_be_is_not_learnt():
    found = Calibration("x")
    found.learn(fact(moving_bytes=1000))
    assert found.runs == []
    content = {"format": "ince-plan/1", "rates": {}, "runs": [vars(fact(seconds=0.0))]}
    path = calibration_file("x")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))
    assert Calibration.read("x").runs == []
