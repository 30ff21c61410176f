import json
import sys

import pytest
import torch

from ince.ops import backends


def refuse(*_arguments, **_options):
    raise RuntimeError("not on this machine")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("INCE_CACHE", str(tmp_path / "cache"))


def test_it_shows_the_machine(command):
    code, out, err = command("env")
    assert (code, err) == (0, "")
    for label in ("cpu", "kernels", "threads", "cache", "versions"):
        assert label in out
    assert torch.__version__.partition("+")[0] in out


def test_a_pipe_folds_no_line(command, monkeypatch):
    reason = "because " * 40
    said = [backends.BackendReport("cpu", "reference", "plain PyTorch", reason.strip())]
    monkeypatch.setattr(backends, "report", lambda: said)
    assert reason.strip() in command("env")[1]


def test_json(command, tmp_path):
    code, out, err = command("env", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found.keys() == {
        "platform",
        "processor",
        "memory",
        "accelerators",
        "backends",
        "threads",
        "cache",
        "versions",
        "unknown",
    }
    assert found["processor"].keys() == {
        "name",
        "architecture",
        "num_cores",
        "num_cores_of_machine",
        "instruction_sets",
    }
    assert {each["device"] for each in found["backends"]} == {"cpu", "cuda"}
    assert all(
        each.keys() == {"device", "backend", "detail", "fallback_reason"}
        for each in found["backends"]
    )
    assert found["memory"].keys() == {"total_bytes", "free_bytes"}
    assert found["accelerators"].keys() == {"devices", "runtime", "none_because"}
    assert found["cache"]["folder"] == str(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_what_cannot_be_had_is_unknown_and_the_command_succeeds(command, monkeypatch):
    monkeypatch.setattr(backends, "report", refuse)
    monkeypatch.setattr(torch, "get_num_interop_threads", refuse)
    code, out, _ = command("env")
    assert code == 0
    assert out.count("unknown: RuntimeError: not on this machine") == 2
    found = json.loads(command("env", "--json")[1])
    assert found["backends"] is None
    assert found["unknown"]["backends"] == "RuntimeError: not on this machine"


def test_a_torch_that_cannot_be_imported(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    code, out, _ = command("env", "--json")
    assert code == 0
    found = json.loads(out)
    assert "torch" in found["unknown"]["threads.inside_operations"]
    assert found["memory"]["total_bytes"] > 0


def test_a_forced_reference_is_said(command, monkeypatch):
    monkeypatch.setenv("INCE_BACKEND", "reference")
    found = json.loads(command("env", "--json")[1])
    assert {each["backend"] for each in found["backends"]} == {"reference"}
    assert all(each["fallback_reason"] for each in found["backends"])


def test_it_takes_no_arguments(command):
    code, _, err = command("env", "extra")
    assert code == 2
    assert "unexpected" in err
