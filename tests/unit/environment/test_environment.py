import dataclasses
import importlib.metadata
import json

import pytest

from ince.environment import Environment, Unknown, read_environment
from ince.environment import environment as environment_module
from ince.ops import backends
from ince.ops.backends import BackendReport


def refuse(*_arguments, **_options):
    raise RuntimeError("no  such\nthing")


def test_what_this_machine_offers_is_found():
    found = read_environment()
    assert isinstance(found, Environment)
    assert found.processor.num_cores >= 1
    assert found.memory.total_bytes > 2**28
    assert found.threads.inside_operations >= 1
    assert found.versions["ince"] == importlib.metadata.version("ince")
    assert found.versions["torch"] == importlib.metadata.version("torch")
    assert {each.device for each in found.backends} == {"cpu", "cuda"}


def test_as_json_everything_is_plain(monkeypatch, tmp_path):
    monkeypatch.setenv("INCE_CACHE", str(tmp_path))
    content = json.loads(json.dumps(read_environment().to_dict()))
    assert content.keys() == {
        *(field.name for field in dataclasses.fields(Environment)),
        "unknown",
    }
    assert content["cache"]["folder"] == str(tmp_path)
    assert content["unknown"] == {}


def test_a_fact_that_cannot_be_had_costs_none_of_the_others(monkeypatch):
    monkeypatch.setattr(backends, "report", refuse)
    monkeypatch.setattr(environment_module, "versions", refuse)
    content = read_environment().to_dict()
    assert content["backends"] is None
    assert content["unknown"] == {
        "backends": "RuntimeError: no such thing",
        "versions": "RuntimeError: no such thing",
    }
    assert content["processor"]["num_cores"] >= 1


def test_the_path_of_what_is_unknown_leads_to_its_null(monkeypatch):
    monkeypatch.setattr("ince.environment.memory.shutil.disk_usage", refuse)
    monkeypatch.setattr("torch.get_num_interop_threads", refuse)
    content = read_environment().to_dict()
    assert content["unknown"].keys() == {
        "cache.disk_free_bytes",
        "cache.disk_total_bytes",
        "threads.between_operations",
    }
    for path in content["unknown"]:
        section, name = path.split(".")
        assert content[section][name] is None


def test_backends_are_those_that_operators_report(monkeypatch):
    said = [BackendReport("cpu", "reference", "plain PyTorch", "no compiler")]
    monkeypatch.setattr(backends, "report", lambda: said)
    (backend,) = read_environment().backends
    assert dataclasses.astuple(backend) == ("cpu", "reference", "plain PyTorch", "no compiler")


def test_an_error_of_ince_is_told_in_its_words(monkeypatch):
    monkeypatch.setenv("INCE_BACKEND", "fastest")
    reason = read_environment().backends
    assert isinstance(reason, Unknown)
    assert "INCE_BACKEND" in reason.reason
    assert "\n" not in reason.reason


@pytest.mark.parametrize("name", ["HF_TOKEN", "SOME_SECRET"])
def test_no_secret_of_the_environment_is_told(monkeypatch, name):
    monkeypatch.setenv(name, "a-very-secret-word")
    assert "a-very-secret-word" not in json.dumps(read_environment().to_dict())
