"""Where a training step of ince spends its time on a CPU, part by part, beside its bound.

    python benchmarks/train_profile.py [--rows 4x256] [--steps 3] [--quantize nf4] [--dtype auto]
        [--set section.key=value ...] [--ops 6] [--json FILE] [--quick]

Runs a recipe through the session of `ince train` (SmolLM2-135M-Instruct, LoRA r=16 on all linear
layers, packed chats of `training/chats.py`), traces some steps after the first two, and prints
the processor's own time of each part: matrix products, attention, norms, rope, activation, LoRA,
head and loss, optimizer, dequantization, rest. *untraced* is what no operation accounts for:
Python, mostly. The bound is the time of the products that a step cannot avoid, timed alone right
after (`training/bound.py`); it is compared with steps that were not traced.

`--rows 4x256` are four packed rows of 256 tokens in one forward and one step. `--dtype auto` is
bfloat16 where the processor multiplies it and float32 elsewhere, where bfloat16 is far slower.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.profiler import ProfilerActivity, profile
from training.bound import StepBound, num_operations
from training.chats import make_chats, write_chats
from training.groups import marked, part_times
from training.ince_run import logged_steps, opened, recipe_values
from training.machine import machine, print_facts, product_dtype, versions
from training.tiny import tiny_model

WARM_UP = 2


class Watch:
    """Times steps at the end of each optimizer step; traces those after the untraced ones."""

    def __init__(self, num_steps):
        self.num_steps = num_steps
        self.ends = []
        self.trace = None

    def __call__(self, *_):
        self.ends.append(time.perf_counter())
        done = len(self.ends)
        if done == WARM_UP + self.num_steps:
            self.trace = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
            self.trace.__enter__()
        elif done == WARM_UP + 2 * self.num_steps:
            self.trace.__exit__(None, None, None)

    @property
    def seconds(self):
        """Of each untraced step, and of each traced one."""
        steps = [b - a for a, b in zip(self.ends, self.ends[1:], strict=False)]
        first = WARM_UP - 1
        return steps[first : first + self.num_steps], steps[first + self.num_steps :]


def run(arguments, folder):
    """Train and trace; returns figures."""
    num_rows, length = map(int, arguments.rows.split("x"))
    base = tiny_model(folder / "tiny") if arguments.quick else "smollm2-135m-instruct"
    num_steps = WARM_UP + 2 * arguments.steps
    chats = make_chats(min(60 + num_steps * num_rows * length // 60, 1500), 0)
    train = folder / "train.jsonl"
    write_chats(train, chats)
    values = recipe_values(
        folder / "run",
        rows={"max_length": length, "batch_tokens": num_rows * length, "micro_batch_tokens": None},
        model={
            "base": str(base),
            "quantize": arguments.quantize,
            "compute_dtype": product_dtype(arguments.dtype),
        },
        data={"train": str(train), "truncation": "drop"},
        train={"max_steps": num_steps},
    )
    for change in arguments.set:
        key, _, value = change.partition("=")
        section, _, name = key.partition(".")
        values[section][name] = json.loads(value)
    watch = Watch(arguments.steps)
    handle = register_optimizer_step_post_hook(watch)
    try:
        with opened(values) as session:
            model = session.model.get_base_model()
            with marked(model):
                session.train()
            config, dtype = model.config, getattr(torch, session.recipe.model.compute_dtype)
    finally:
        handle.remove()
    untraced, traced = watch.seconds
    steps = logged_steps(folder / "run")
    plain = steps[WARM_UP : WARM_UP + arguments.steps]
    bound = StepBound(config, dtype)
    counts = [(tokens, targets) for tokens, targets, _ in plain]
    bound.seconds(counts[:1])
    products = [bound.seconds([count]) for count in counts]
    return {
        "rows": arguments.rows,
        "dtype": str(dtype).removeprefix("torch."),
        "tokens": [tokens for tokens, _ in counts],
        "targets": [targets for _, targets in counts],
        "step_seconds": untraced,
        "traced_step_seconds": traced,
        "bound_seconds": products,
        "bound_gflops": [
            num_operations(config, *count) / seconds / 1e9
            for count, seconds in zip(counts, products, strict=True)
        ],
        "parts": part_times(watch.trace.events(), values["lora"]["r"]),
    }


def show(figures, num_ops):
    """The table, for a person."""
    seconds, traced = sum(figures["step_seconds"]), sum(figures["traced_step_seconds"])
    tokens, bound = sum(figures["tokens"]), sum(figures["bound_seconds"])
    num_steps = len(figures["step_seconds"])
    share = sum(figures["targets"]) / tokens
    print(f"step: {1e3 * seconds / num_steps:.0f} ms, {tokens / seconds:.0f} tokens/s", end=", ")
    print(f"{tokens / num_steps:.0f} tokens a step, {100 * share:.0f}% of them targets")
    gflops = sum(figures["bound_gflops"]) / num_steps
    print(f"bound: {1e3 * bound / num_steps:.0f} ms, {tokens / bound:.0f} tokens/s", end=", ")
    print(f"{gflops:.0f} GFLOP/s in {figures['dtype']}")
    print(f"share of the bound: {100 * bound / seconds:.1f}%")
    print(f"traced: {1e3 * traced / num_steps:.0f} ms a step, of which")
    parts = {part: sum(ops.values()) for part, ops in figures["parts"].items()}
    parts["untraced"] = traced - sum(parts.values())
    for part, spent in sorted(parts.items(), key=lambda item: -item[1]):
        print(f"  {part:16s} {1e3 * spent / num_steps:9.1f} ms {100 * spent / traced:5.1f}%")
        ops = figures["parts"].get(part, {})
        for name, each in sorted(ops.items(), key=lambda item: -item[1])[:num_ops]:
            print(f"      {name[:56]:56s} {1e3 * each / num_steps:9.1f} ms")


def main():
    parser = argparse.ArgumentParser(description="a training step of ince, part by part")
    parser.add_argument("--rows", default="4x256", help="rows x tokens of a step")
    parser.add_argument("--steps", type=int, default=3, help="untraced, and as many traced")
    parser.add_argument("--quantize", default="nf4", choices=["nf4", "none"])
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32"])
    parser.add_argument("--ops", type=int, default=6, help="operations shown of each part")
    parser.add_argument("--set", action="append", default=[], help="section.key=JSON of the recipe")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--quick", action="store_true", help="a tiny model: does it work?")
    arguments = parser.parse_args()
    facts = {"machine": machine(), "versions": versions("torch", "transformers")}
    print_facts(facts)
    with tempfile.TemporaryDirectory() as place:
        figures = run(arguments, Path(place))
    show(figures, arguments.ops)
    if arguments.json:
        arguments.json.write_text(json.dumps(facts | figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
