import json
import math
import os
import signal
import tempfile

import pytest
from rich.console import Console

from ince.errors import InputError, InterruptedRunError
from ince.search import find_lr
from ince.search import lr_find as module

QUIET = Console(quiet=True)


def test_the_rates_are_those_of_the_test_and_the_run_is_untouched(read, tmp_path):
    recipe = read(["train.loraplus_lr_ratio=16", "train.eval_every=1", "train.save_every=1"])
    before = {path.name for path in tmp_path.iterdir()}
    found = find_lr(recipe, low=1e-5, high=1.0, num_steps=12, console=QUIET)
    assert {path.name for path in tmp_path.iterdir()} == before
    points = found["points"]
    assert [point["step"] for point in points] == list(range(1, len(points) + 1))
    assert points[0]["lr"] == 1e-5
    assert points[1]["lr"] == pytest.approx(1e-5 * 10 ** (5 / 11))
    assert found["recipe"]["train"]["loraplus_lr_ratio"] == 16
    assert found["adapter"]["r"] == 2
    json.dumps(found, allow_nan=False)


def test_the_test_is_the_same_twice_and_longer_than_the_data(read):
    first, second = (
        find_lr(read(), low=1e-5, high=1e-1, num_steps=14, console=QUIET)["points"]
        for _ in range(2)
    )
    assert first == second
    assert len(first) == 14


def test_a_rate_that_is_far_too_high_ends_it_early(read):
    found = find_lr(read(), low=1e-4, high=1e3, num_steps=40, stop_factor=1.001, console=QUIET)
    assert found["status"] == "diverged"
    assert len(found["points"]) < 40
    assert all(math.isfinite(point["loss"]) for point in found["points"])


def test_loraplus_moves_the_curve(read):
    plain, fast = (
        find_lr(read(more), low=1e-4, high=1e-1, num_steps=12, console=QUIET)["points"]
        for more in ([], ["train.loraplus_lr_ratio=64"])
    )
    assert plain[0]["loss"] == fast[0]["loss"]
    assert fast[-1]["loss"] != plain[-1]["loss"]


def test_ctrl_c_shows_what_is_known(read, monkeypatch, tmp_path_factory):
    own = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(own))
    watcher, known = module._Watcher.stepped, []

    def stepped(self, report):
        watcher(self, report)
        if report.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(module._Watcher, "stepped", stepped)
    with pytest.raises(InterruptedRunError, match="after step 5 of 20"):
        find_lr(read(), num_steps=20, console=QUIET, known=known.append)
    (content,) = known
    assert content["status"] == "interrupted"
    assert len(content["points"]) == 5
    assert content["suggestion"] is None
    assert "too few" in content["why_none"]
    assert list(own.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"low": 0.0}, "do not make a range"),
        ({"low": 1e-1, "high": 1e-2}, "do not make a range"),
        ({"high": 1e9}, "do not make a range"),
        ({"low": math.nan}, "do not make a range"),
        ({"num_steps": 3}, "too few steps"),
        ({"stop_factor": 1.0}, "every loss"),
        ({"stop_factor": math.nan}, "every loss"),
    ],
)
def test_a_range_that_cannot_be_is_refused_at_once(read, options, words):
    with pytest.raises(InputError, match=words):
        find_lr(read(), console=QUIET, **options)
