"""Memory that really runs out, in a process whose address space is limited.

Where fewer rows at a time fit, a run goes on with the same result but for rounding; where not
even one does, an error says what helps.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

PROGRAM = Path(__file__).with_name("scarce_memory.py")

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform != "linux", reason="limits are those of Linux"),
]


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """What came of each case, by name."""
    folder = tmp_path_factory.mktemp("scarce")
    # Blocks are mapped and unmapped one by one, so that what is free is known.
    allocator = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_ARENA_MAX": "1"}
    ended = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder)],
        env=os.environ | allocator | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr

    def read(name):
        found = json.loads((folder / name / "result.json").read_text("utf-8"))
        return found | {"learnt": load_file(folder / name / "learnt.safetensors")}

    return read


def near(ours, theirs):
    return all(torch.allclose(ours[name], theirs[name], rtol=0, atol=3e-5) for name in theirs)


@pytest.mark.parametrize("where", ["probe", "step"])
def test_training_goes_on_in_smaller_forwards(cases, where):
    plain, scarce = cases("plain"), cases(where)
    assert "error" not in scarce
    assert not plain["events"]
    assert any("a forward gets" in line for line in scarce["lines"])
    assert near(scarce["learnt"], plain["learnt"])
    if where == "step":
        assert scarce["events"][0]["event"] == "micro-batch cut"
        assert "allocate memory" in scarce["events"][0]["what"]
        assert scarce["events"][0]["step"] == 2


@pytest.mark.parametrize("name", ["one row", "one row at first"])
def test_a_row_that_does_not_fit_ends_the_run_with_what_helps(cases, name):
    error = cases(name)["error"]
    assert error["type"] == "TrainingError"
    assert "row" in error["what"]
    for remedy in ("train.activations: recompute", "data.max_length", "model.quantize: nf4"):
        assert remedy in error["do"]


def test_a_held_out_loss_is_measured_in_smaller_batches(cases):
    plain, scarce = cases("small"), cases("evaluation")
    assert "error" not in scarce
    assert any("the held-out loss was refused more" in line for line in scarce["lines"])
    assert scarce["losses"] == pytest.approx(plain["losses"], rel=1e-5)
    assert len(scarce["losses"]) == 2
    assert near(scarce["learnt"], plain["learnt"])
