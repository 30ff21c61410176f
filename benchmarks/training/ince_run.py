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


def batch_tokens_of_steps(num_steps, train, spec, seeds):
    """For each seed the `batch_tokens` with which one pass of `train` takes `num_steps` steps.

    A step of a peer is a number of chats, ours a number of tokens; adapters after more steps of
    a constant rate are no comparison.

    Args:
        num_steps: that the peers take.
        train: a file of chats.
        spec: {"model", "max_length"}.
        seeds: of the runs.
    """
    from ince.data import DataConfig, load_split
    from ince.models import load_tokenizer
    from ince.train.steps import StepPlan

    config = DataConfig(train=str(train), max_length=spec["max_length"])
    split = load_split(str(train), config, load_tokenizer(Path(spec["model"])))
    examples, length = split.examples, spec["max_length"]

    def steps_of(batch_tokens, seed):
        plan = StepPlan(
            examples,
            packing=True,
            max_length=length,
            batch_tokens=batch_tokens,
            epochs=1,
            max_steps=None,
            seed=seed,
        )
        return plan.num_steps

    whole = sum(example.num_tokens for example in examples)
    sizes = range(whole // (2 * num_steps), 2 * whole, 16)
    found = {}
    for seed in seeds:
        size = next((size for size in sizes if steps_of(size, seed) == num_steps), None)
        if size is None:
            raise SystemExit(f"no size of a step makes {num_steps} of these chats, seed {seed}")
        found[seed] = size
    return found


class Forwards:
    """How many forwards each optimizer step took, by a hook on the input embedding."""

    def __init__(self, model):
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self.steps, self._count = [], 0
        model.get_input_embeddings().register_forward_pre_hook(self._forward)
        register_optimizer_step_post_hook(self._stepped)

    def _forward(self, *_):
        self._count += 1

    def _stepped(self, *_):
        self.steps.append(self._count)
        self._count = 0


def run_ince(spec, gate):
    """`ince train` on packed chats."""
    run = Path(spec["folder"]) / "run"
    values = recipe_values(
        run,
        rows=spec,
        model={
            "base": spec["model"],
            "quantize": spec["quantize"],
            "compute_dtype": spec["dtype"],
        },
        lora={"r": spec["r"], "alpha": 2 * spec["r"]},
        data={"train": spec["train"]},
        train={
            "epochs": spec["epochs"],
            "max_steps": spec["max_steps"],
            "lr": spec["lr"],
            "seed": spec["seed"],
        },
    )
    for section, changes in spec["changes"].items():
        values[section] = values[section] | changes
    with opened(values) as session:
        forwards = Forwards(session.model.get_base_model())

        def facts():
            # Rows hold no padding but what rounds a batch up.
            counts = [(tokens, targets, tokens) for tokens, targets, _ in logged_steps(run)]
            return {"counts": counts, "forwards": forwards.steps}

        gate.open(facts)
        session.train()
        gate.close()
    return facts() | {"adapter": str(run / "adapter")}
