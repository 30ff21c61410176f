import json
import sys
import types
from pathlib import Path

import pytest

from ince.record import RunRecord

SUMMARY = {"base": {"heldout_loss": 3.0}, "tuned": {"heldout_loss": 2.0}, "run": "here"}


@pytest.fixture
def asked(monkeypatch):
    calls = []

    def run_demo(*, output, quick, console):
        calls.append((output, quick))
        RunRecord.create(output, recipe={}, recipe_digest="").finish("done")
        return SUMMARY

    monkeypatch.setitem(sys.modules, "ince.demo", types.SimpleNamespace(run_demo=run_demo))
    return calls


def test_json_is_the_summary_alone(command, asked, tmp_path):
    code, out, _ = command("demo", "--json", "--quick", "--output", str(tmp_path / "d"))
    assert code == 0
    assert json.loads(out) == SUMMARY
    assert asked == [(tmp_path / "d", True)]


def test_a_person_gets_the_run(command, asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = command("demo")
    assert code == 0
    assert out.strip()
    assert asked == [(Path("runs/demo"), False)]
