"""The benchmark of attention runs, and its three ways compute the same."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_figures_are_written_and_all_ways_agree(tmp_path):
    path = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, "benchmarks/attention.py", "--quick", "--json", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(path.read_text(encoding="utf-8"))
    assert {"cpu", "isa", "ince_isa", "threads", "python", "torch"} <= set(figures)
    assert set(figures["packed"]) == {"ince", "masked", "separate"}
    for each in figures["packed"].values():
        assert all(math.isfinite(value) for value in each.values())
        assert each["both_ms"] > each["forward_ms"] > 0
        assert each["difference"] < 1e-4
    assert figures["packed"]["ince"]["ratio"] == 1
