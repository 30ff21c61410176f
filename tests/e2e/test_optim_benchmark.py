"""The benchmark of optimizers runs, and writes every figure it promises, on a tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_tiers_disk_and_eight_bits_are_measured(tmp_path):
    path = tmp_path / "figures.json"
    options = ["--quick", "--rounds", "1", "--rows", "1x64", "--json", str(path)]
    done = subprocess.run(
        [sys.executable, "benchmarks/optim.py", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(path.read_text(encoding="utf-8"))
    paged = figures["paged"]
    in_file = [paged[f"{share}% in memory"]["file_bytes"] for share in (100, 25, 10, 0)]
    assert in_file == sorted(in_file)
    assert in_file[0] == 0 < in_file[1]
    assert all(each["seconds"][0] > 0 for each in paged.values())
    assert figures["disk"]["copy_bytes_per_second"][0] > 0
    assert figures["disk"]["update_bytes_per_second"][0] > 0
    assert set(figures["8bit"]) == {"torch AdamW", "ince 8-bit", "bitsandbytes 8-bit"}
    assert "goal at 10%" in done.stdout
