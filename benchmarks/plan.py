"""Was the plan true: planned against measured peak and time, on real runs, each in its own process.

    python benchmarks/plan.py [--only NAME,...] [--json FILE] [--cache FOLDER] [--models FOLDER]
        [--quick]
    python benchmarks/plan.py --table FILE [--replan]

Every run trains a few steps through the code of `ince train`; its plan is made before its first
step, from the model's shape and the rows, and stands in its record beside what was measured. Models
are SmolLM2-135M-Instruct and random weights of the shapes below. Products are in the type that
``compute_dtype: auto`` gives. Calibration begins empty and learns from one run that is not counted
(``first``); what later runs teach is used by those after them, as on a user's machine, unless
``--forget`` keeps it at that one.

Peak memory is the resident set during steps, on a GPU what its allocator gave out. Figures go to
the file of --json, one run after the other, so that a run that is cut off costs itself alone;
--table prints such a file; with --replan its memory is planned once more by the formulas of today,
run after run, each learning from those before it, beside what was measured then.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

MODEL = "smollm2-135m-instruct"
SHAPES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "heads": (4, 2)},
    "30M": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "heads": (8, 4)},
    "360M": {
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_hidden_layers": 32,
        "heads": (15, 5),
    },
    "1B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "heads": (32, 8),
    },
}
FIRST = {"name": "first", "shape": MODEL, "length": 384}
RUNS = (
    {"name": "135M nf4 r16 256", "shape": MODEL, "length": 256},
    {"name": "135M nf4 r8 512", "shape": MODEL, "length": 512, "r": 8},
    {"name": "135M nf4 r64 512", "shape": MODEL, "length": 512, "r": 64},
    {"name": "135M nf4 r16 512 recompute", "shape": MODEL, "length": 512, "recompute": True},
    {"name": "135M float r16 512", "shape": MODEL, "length": 512, "quantize": None},
    {
        "name": "135M float r64 256 recompute",
        "shape": MODEL,
        "length": 256,
        "r": 64,
        "quantize": None,
        "recompute": True,
    },
    {"name": "135M nf4 r16 1024 packed", "shape": MODEL, "length": 1024, "packing": True},
    {"name": "30M nf4 r16 2048", "shape": "30M", "length": 2048},
    {"name": "30M float r32 2048 recompute", "shape": "30M", "length": 2048, "r": 32}
    | {"quantize": None, "recompute": True},
    {"name": "360M nf4 r16 256", "shape": "360M", "length": 256},
    {"name": "360M float r8 256", "shape": "360M", "length": 256, "r": 8, "quantize": None},
    {"name": "1B nf4 r16 256 recompute", "shape": "1B", "length": 256, "recompute": True},
    {"name": "1B float r8 256", "shape": "1B", "length": 256, "r": 8, "quantize": None},
    {"name": "135M nf4 r64 256 paged", "shape": MODEL, "length": 256, "r": 64}
    | {"train": {"optimizer": "paged_adamw", "pages": {"memory": "32MiB"}}},
    {"name": "30M full 512 lion", "shape": "30M", "length": 512, "quantize": None}
    | {"train": {"method": "full", "optimizer": "lion"}},
)
QUICK = ({"name": "tiny nf4", "shape": "tiny", "length": 64},)
GOALS = {"median": 0.04, "worst": 0.08, "under": -0.03, "time": 0.15}


def random_model(name, folder):
    """Write a Llama of random weights, with SmolLM2's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from ince.models import resolve

    tokenizer = AutoTokenizer.from_pretrained(resolve(MODEL).folder)
    values = dict(SHAPES[name])
    heads, kv_heads = values.pop("heads")
    config = LlamaConfig(
        **values,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        max_position_embeddings=8192,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_rows(path, spec):
    """Texts of random words: longer than a row, or short ones that are packed."""
    import random

    draw = random.Random(0)
    words = ("the", "house", "river", "stone", "walks", "under", "light", "green", "song", "bread")
    length = 90 if spec.get("packing") else 2 * spec["length"]
    lines = (
        json.dumps({"text": " ".join(draw.choices(words, k=length))})
        for _ in range(spec["length"] // 8 if spec.get("packing") else 8)
    )
    path.write_text("".join(line + "\n" for line in lines))


def recipe_of(spec, model, place):
    """The recipe of a run: a row in a forward, one forward in a step."""
    length = spec["length"]
    return {
        "model": {"base": str(model), "quantize": spec.get("quantize", "nf4")},
        "lora": {"r": spec.get("r", 16), "alpha": 32},
        "data": {
            "train": str(place / "rows.jsonl"),
            "format": "text",
            "max_length": length,
            "packing": spec.get("packing", False),
        },
        "train": {
            "max_steps": spec.get("steps", 2),
            "batch_tokens": length,
            "activations": "recompute" if spec.get("recompute") else "keep",
            **spec.get("train", {}),
        },
        "output": str(place / "run"),
    }


def work(spec):
    """One run, in this process; prints its plan beside its measurement."""
    from rich.console import Console

    from ince.recipe.load import parse_recipe
    from ince.recipe.session import Session, open_run

    place = Path(spec["place"])
    recipe = parse_recipe(recipe_of(spec, spec["model"], place))
    record = open_run(recipe, resume=False)
    Session(recipe, record, console=Console(file=sys.stderr)).train()
    print(json.dumps(record["plan"]))


def run_one(spec, model, cache):
    """One run in a process of its own; its plan and measurement."""
    with tempfile.TemporaryDirectory() as place:
        write_rows(Path(place) / "rows.jsonl", spec)
        told = {**spec, "model": str(model), "place": place}
        done = subprocess.run(
            [sys.executable, __file__, "--worker", json.dumps(told)],
            capture_output=True,
            text=True,
            env={**os.environ, "INCE_CACHE": str(cache)},
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"{spec['name']}: {done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measured(arguments, place):
    """Every run that was asked for, in turn."""
    cache = arguments.cache or place / "cache"
    models = {}
    wanted = QUICK if arguments.quick else RUNS
    if arguments.only:
        wanted = [spec for spec in wanted if any(part in spec["name"] for part in arguments.only)]
    fresh = not arguments.quick and not (cache / "plan").is_dir()
    for spec in ([FIRST] if fresh else []) + list(wanted):
        shape = spec["shape"]
        if shape not in models:
            models[shape] = model_of(shape, arguments.models or place)
        kept = cache / "plan-of-the-first"
        if arguments.forget and kept.is_dir():
            shutil.rmtree(cache / "plan", ignore_errors=True)
            shutil.copytree(kept, cache / "plan")
        train = {**spec.get("train", {}), "compact_heap": arguments.compact_heap}
        found = run_one({**spec, "train": train}, models[shape], cache)
        if spec is FIRST:
            shutil.copytree(cache / "plan", kept)
        yield spec["name"], found


def model_of(shape, place):
    """Its folder; a random one is written into `place`, unless it is there."""
    if shape == MODEL:
        from ince.models import resolve

        return resolve(MODEL).folder
    folder = place / shape
    if not (folder / "config.json").is_file():
        random_model(shape, folder)
    return folder


def replanned(results):
    """The same measurements beside today's plans of memory; those of time stay as they were."""
    from ince.plan import Calibration, Rate, plan_memory, plan_time, read_shape
    from ince.plan.shape import Shape
    from ince.plan.truth import Measured, RunPlan
    from ince.recipe.load import parse_recipe
    from ince.recipe.plan import setup_of_recipe

    specs = {spec["name"]: spec for spec in (FIRST, *RUNS)}
    rate = Rate(1.0, None, None, 1.0, "", is_assumed=True)
    learnt = Calibration("none")
    again = {}
    for name, found in results.items():
        spec = specs[name]
        if spec["shape"] == MODEL:
            shape = read_shape(MODEL)
        else:
            sizes = SHAPES[spec["shape"]]
            heads, kv_heads = sizes["heads"]
            shape = Shape(
                spec["shape"],
                sizes["hidden_size"],
                sizes["intermediate_size"],
                sizes["num_hidden_layers"],
                heads,
                kv_heads,
                sizes["hidden_size"] // heads,
                read_shape(MODEL).vocabulary,
                is_tied=True,
            )
        with tempfile.TemporaryDirectory() as place:
            write_rows(Path(place) / "rows.jsonl", spec)
            recipe = parse_recipe(recipe_of(spec, MODEL, Path(place)))
        setup = setup_of_recipe(recipe, shape, device="cpu").with_changes(
            num_rows=found["num_rows"], length=found["length"], num_targets=found["num_targets"]
        )
        overheads = learnt.overheads(setup)
        memory = plan_memory(shape, setup, overheads)
        plan = RunPlan(shape, setup, memory, plan_time(shape, setup, rate))
        weights, adapters, rest, _ = (each["measured_bytes"] for each in found["components"])
        measured = Measured(
            weights, adapters, weights + adapters + rest, found["measured_bytes"], 1.0
        )
        learnt.runs.append(plan.fact(measured, rate))
        kept = {key: value for key, value in found.items() if "tokens_per" in key or "time" in key}
        again[name] = plan.beside(measured) | kept
    return again


def line(name, found):
    """A row of the table."""
    mib = 2**20
    cells = (
        name,
        f"{found['planned_bytes'] / mib:,.0f}",
        f"{found['measured_bytes'] / mib:,.0f}",
        f"{found['error']:+.1%}",
        f"{found['planned_tokens_per_second']:,.0f}",
        f"{found['measured_tokens_per_second']:,.0f}",
        f"{found['time_error']:+.0%}",
    )
    return "| " + " | ".join(cells) + " |"


def print_table(results):
    """All runs, and whether the goals are reached."""
    print("| run | planned MiB | measured MiB | error | planned tokens/s | measured | time error |")
    print("|---|---|---|---|---|---|---|")
    for name, found in results.items():
        print(line(name, found))
    counted = [found for name, found in results.items() if name != FIRST["name"]]
    if not counted:
        return
    errors = [found["error"] for found in counted]
    times = [abs(found["time_error"]) for found in counted]
    reached = {
        "median": median(map(abs, errors)),
        "worst": max(map(abs, errors)),
        "under": min(errors),
        "time": max(times),
    }
    print()
    for name, value in reached.items():
        holds = value >= GOALS[name] if name == "under" else value <= GOALS[name]
        verdict = "reached" if holds else "missed"
        print(f"{name:<8}{value:+.1%}  goal {GOALS[name]:+.0%}  {verdict}")
    print(f"median time error {median(times):.1%}")


def parsed():
    parser = argparse.ArgumentParser(description="planned against measured")
    parser.add_argument("--only", type=lambda text: text.split(","), help="parts of names")
    parser.add_argument("--json", type=Path, help="where figures are kept, and added to")
    parser.add_argument("--cache", type=Path, help="calibration; a new one by default")
    parser.add_argument("--models", type=Path, help="where random models are kept")
    parser.add_argument("--forget", action="store_true", help="learn from the first run alone")
    parser.add_argument("--table", type=Path, help="print the figures of such a file, and leave")
    parser.add_argument("--replan", action="store_true", help="by today's formulas, with --table")
    parser.add_argument("--compact-heap", action="store_true", help="with train.compact_heap")
    parser.add_argument("--quick", action="store_true", help="a tiny model: does it work?")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    arguments = parsed()
    if arguments.worker:
        work(arguments.worker)
        return
    if arguments.table:
        results = json.loads(arguments.table.read_text())
        print_table(replanned(results) if arguments.replan else results)
        return
    results = {}
    if arguments.json and arguments.json.is_file():
        results = json.loads(arguments.json.read_text())
    with tempfile.TemporaryDirectory() as place:
        for name, found in measured(arguments, Path(place)):
            results[name] = found
            print(line(name, found), flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(results, indent=1))
    print()
    print_table(results)


if __name__ == "__main__":
    main()
