"""The benchmark of plans runs, and writes what it promises, on a tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_a_plan_stands_beside_its_measurement(tmp_path):
    path = tmp_path / "figures.json"
    command = [sys.executable, "benchmarks/plan.py", "--quick", "--json", str(path)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(path.read_text(encoding="utf-8")).values()
    assert found["planned_bytes"] > 0
    assert found["measured_bytes"] > 0
    weights = found["components"][0]
    assert weights["planned_bytes"] == weights["measured_bytes"]
    assert "tiny nf4" in done.stdout
