"""`benchmarks/nf4_quality.py --quick` writes what it promises.

Which format is better in perplexity is not judged: the model is a tiny one, drawn at random.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHIPPED = ("NF4", "NF4 + DQ", "NF4 + DQ, searched", "FP4", "INT4")


@pytest.mark.long
def test_every_format_has_its_error_and_its_perplexity(tmp_path):
    path = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, "benchmarks/nf4_quality.py", "--quick", "--json", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(path.read_text(encoding="utf-8"))
    errors = figures["error"]
    # Of normal weights the order does not hang on the draw.
    mse = {name: errors[name]["normal"]["mse"] for name in SHIPPED}
    assert mse["NF4 + DQ, searched"] < mse["NF4"] < mse["INT4"] < mse["FP4"]
    for kind in ("english", "turkish"):
        table = figures["perplexity"][kind]["formats"]
        assert set(SHIPPED) < set(table)
        for name in SHIPPED:
            assert 1 < table[name]["filed"]["perplexity"] < math.inf
            assert table[name]["divergence_filed"]["mean"] > 0
