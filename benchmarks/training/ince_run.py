"""ince as its users run it: a recipe, through the session of `ince train`."""

import contextlib
import json
from pathlib import Path

from rich.console import Console


def recipe_values(folder, *, rows, **sections):
    """A recipe as a dictionary: an adapter of r=16 on all linear layers of a base in NF4.

    Args:
        folder: for the run.
        rows: {"max_length", "batch_tokens", "micro_batch_tokens"}.
        sections: of a recipe, added to what is here: ``model={"base": …}``, ``data={"train": …}``.
    """
    batches = {key: rows[key] for key in ("batch_tokens", "micro_batch_tokens")}
    values = {
        "model": {"quantize": "nf4", "device": "cpu"},
        "lora": {"r": 16, "alpha": 32, "target_modules": "all-linear"},
        "data": {"max_length": rows["max_length"]},
        "train": {"lr": 2e-4, "schedule": "constant", "warmup_ratio": 0.0, "seed": 0} | batches,
        "output": str(folder),
    }
    for section, content in sections.items():
        values[section] = values.get(section, {}) | content
    return values


@contextlib.contextmanager
def opened(values):
    """The session of a recipe, in a new folder."""
    from ince.recipe.load import parse_recipe
    from ince.recipe.session import Session, open_run

    recipe = parse_recipe(values)
    with Path("/dev/null").open("w") as silent:
        yield Session(recipe, open_run(recipe, resume=False), console=Console(file=silent))


def logged_steps(folder):
    """(tokens, target tokens, loss) of each step, from the run's log."""
    lines = (Path(folder) / "log.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [entry for entry in map(json.loads, lines) if "loss" in entry]
    steps, before = [], {"tokens": 0, "target_tokens": 0}
    for entry in entries:
        counts = [entry[key] - before[key] for key in ("tokens", "target_tokens")]
        steps.append((*counts, entry["loss"]))
        before = entry
    return steps
