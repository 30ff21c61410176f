"""The run record: sections are saved whole, and what a run spent adds up."""

import json
import math
import os
import subprocess
import sys
import time

import pytest

from ince import record as record_module
from ince.errors import CorruptFileError, DiskFullError, InputError
from ince.record import RECORD_FORMAT, RunRecord, hardware, peak_memory_bytes, versions


@pytest.fixture
def record(tmp_path):
    return RunRecord.create(tmp_path, recipe={"output": "runs/x"}, recipe_digest="abc")


def saved(tmp_path):
    return json.loads((tmp_path / "run.json").read_text())


def test_a_new_record_is_on_disk(tmp_path, record):
    content = saved(tmp_path)
    assert content == record.content
    assert content["format"] == RECORD_FORMAT
    assert content["status"] == "running"
    assert content["recipe"] == {"output": "runs/x"}
    assert content["created"].endswith("+00:00")


def test_a_section_is_saved_when_it_is_set(tmp_path, record):
    record["training"] = {"steps": 3}
    assert saved(tmp_path)["training"] == {"steps": 3}
    assert record["training"] == {"steps": 3}
    assert record.get("evaluation") is None


def test_a_record_is_read_back(tmp_path, record):
    record["training"] = {"steps": 3}
    assert RunRecord.read(tmp_path).content == record.content


def test_no_record(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        RunRecord.read(tmp_path)


@pytest.mark.parametrize("content", [{}, {"format": "ince-run/999"}, {"format": ["x"]}])
def test_a_record_of_another_format(tmp_path, content):
    (tmp_path / "run.json").write_text(json.dumps(content))
    with pytest.raises(CorruptFileError, match="known format") as caught:
        RunRecord.read(tmp_path)
    assert caught.value.expected == RECORD_FORMAT


def test_a_torn_record(tmp_path, record):
    path = tmp_path / "run.json"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CorruptFileError, match="JSON"):
        RunRecord.read(tmp_path)


def test_a_proof_of_the_same_name_replaces_the_earlier_one(tmp_path, record):
    record.add_proof("merge", value=0.5, limit=0.1, unit="logit", holds=False)
    record.add_proof("resume", value=0, limit=0, unit="bytes", holds=True)
    record.add_proof("merge", value=0.05, limit=0.1, unit="logit", holds=True, detail="again")
    assert [(proof["name"], proof["holds"]) for proof in saved(tmp_path)["proofs"]] == [
        ("resume", True),
        ("merge", True),
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_proof_that_came_out_as_no_number_is_still_recorded(tmp_path, record, value):
    record.add_proof("merge", value=value, limit=0.1, unit="logit", holds=False)
    assert saved(tmp_path)["proofs"][0]["value"] is None


def test_phases_are_recorded_in_order_failed_ones_too(tmp_path, record):
    with record.phase("load"):
        pass

    def fail():
        with record.phase("train"):
            raise RuntimeError("x")

    with pytest.raises(RuntimeError):
        fail()
    phases = saved(tmp_path)["phases"]
    assert [phase["name"] for phase in phases] == ["load", "train"]
    assert all(phase["seconds"] >= 0 and phase["peak_bytes"] > 2**20 for phase in phases)


def test_finishing(tmp_path, record):
    record.finish("done")
    content = saved(tmp_path)
    assert content["status"] == "done"
    assert content["finished"] >= content["created"]
    assert content["peak_bytes"] > 2**20
    assert "error" not in content


def test_an_error_is_kept_until_the_run_goes_well(tmp_path, record):
    record.finish("failed", {"type": "DataError", "what": "x"})
    assert saved(tmp_path)["error"] == {"type": "DataError", "what": "x"}
    RunRecord.read(tmp_path).finish("done")
    assert "error" not in saved(tmp_path)


def test_seconds_add_up_over_processes_and_count_once(tmp_path, record, monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr(record_module.time, "monotonic", lambda: now)
    record = RunRecord.create(tmp_path, recipe={}, recipe_digest="abc")
    now += 10
    record.finish("interrupted")
    record.finish("interrupted")
    assert saved(tmp_path)["seconds"] == 10
    now += 1000
    record = RunRecord.read(tmp_path)
    now += 5
    record.finish("done")
    assert saved(tmp_path)["seconds"] == 15


def test_the_peak_is_that_of_the_largest_process(tmp_path, record):
    record.content["peak_bytes"] = 2**50
    record.finish("done")
    assert saved(tmp_path)["peak_bytes"] == 2**50


def test_versions_name_ince_and_python():
    found = versions()
    assert found["python"].startswith("3.")
    assert "torch" in found
    assert "ince" in found


def test_hardware_is_json_and_names_neither_machine_nor_user():
    facts = hardware()
    text = json.dumps(facts)
    assert facts["num_cores"]
    assert os.uname().nodename not in text
    assert os.path.expanduser("~") not in text  # noqa: PTH111


MEASURE = """
from ince.record import peak_memory_bytes
before = peak_memory_bytes()
filling = bytearray(100_000_000)
del filling
print(before, peak_memory_bytes())
"""


def test_the_peak_is_this_programs_own_and_never_falls():
    filling = bytearray(200_000_000)  # the parent is larger than the child will ever be
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True
    )
    del filling
    before, after = map(int, measured.stdout.split())
    assert before < 100_000_000
    assert after - before > 95_000_000
    assert after < 200_000_000
    assert peak_memory_bytes() > 200_000_000


def test_a_full_disk_costs_a_run_no_section(tmp_path, record, monkeypatch):
    def full(_path, _value):
        raise DiskFullError("no space left on the device")

    with monkeypatch.context() as patch:
        patch.setattr(record_module, "write_json", full)
        record["training"] = {"steps": 3}
        with record.phase("train"):
            pass
        record.finish("failed", {"type": "TrainingError", "what": "x"})
        with pytest.raises(DiskFullError):
            record.finish("done")
    assert "training" not in saved(tmp_path)
    record["base"] = {}
    assert saved(tmp_path)["training"] == {"steps": 3}
