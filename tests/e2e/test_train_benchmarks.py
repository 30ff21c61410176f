"""The training benchmarks run, and write every figure they promise, on tiny models."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def figures_of(program, path, *options):
    """What `program --quick` writes, and what it prints."""
    command = [sys.executable, f"benchmarks/{program}.py", "--quick", *options, "--json", str(path)]
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
    return json.loads(path.read_text(encoding="utf-8")), done.stdout


def is_figure(value):
    return isinstance(value, float) and math.isfinite(value) and value > 0


def test_a_step_is_told_part_by_part_beside_its_bound(tmp_path):
    options = ("--steps", "1", "--rows", "2x192", "--dtype", "float32")
    figures, said = figures_of("train_profile", tmp_path / "figures.json", *options)
    parts = {part: sum(times.values()) for part, times in figures["parts"].items()}
    assert {"matrix products", "LoRA", "head and loss", "optimizer"} <= set(parts)
    assert all(is_figure(seconds) for seconds in parts.values())
    # Own times do not overlap: together they are no longer than the steps that were traced.
    assert sum(parts.values()) <= sum(figures["traced_step_seconds"])
    assert all(0 < n <= 2 * 192 for n in figures["tokens"])
    assert all(is_figure(s) for s in (*figures["bound_seconds"], *figures["step_seconds"]))
    assert "share of the bound" in said
