"""Training on one GPU: Llama-3 shapes with random weights, ince beside TRL, PEFT and bitsandbytes.

    python benchmarks/train_gpu.py --out FOLDER [--only 8b,70b] [--libraries ince,TRL]
        [--steps 8] [--limit SECONDS] [--device cuda|cpu] [--quick]

Needs a CUDA device, torch and ince (`PYTHONPATH=src` is enough), nothing from a network; peers are
used where they can be imported, and left out with a line where not. `--device cpu --quick` runs
tiny shapes, which shows that the program works and nothing else.

    8b    rows of 2048 and 8192 tokens, r=16 and r=64, base in NF4 and in bfloat16
    70b   rows of 2048 tokens, r=16, NF4, with the allocator capped at 48 GiB

Each case has a process of its own, so that one that runs out of memory or of time ends no other.
Weights are drawn on the GPU layer by layer, straight into four bits where the base is in NF4.
The share of the peak is that of products which a step cannot avoid (`training/bound.py`), beside a
bfloat16 product of 8192 x 8192 measured in the same process. ince recomputes activations, as TRL's
defaults do; `--set train.KEY=JSON` changes a key of its `TrainConfig`.

Results go to FOLDER/train_gpu.json and FOLDER/train_gpu.md, after each case. It has run on a CPU
only so far: no figure of a GPU is known.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

from training.machine import machine, occasion, versions

GIB = 1 << 30
CAP_BYTES = 48 * GIB
GOALS = {"speed": 1.3, "memory": 0.8, "70b bytes": 46 * GIB, "70b share": 0.4}
NEEDED = {"ince": ("ince",), "TRL": ("trl", "peft", "bitsandbytes", "datasets")}
PACKAGES = ("ince", "torch", "triton", "transformers", "peft", "bitsandbytes", "trl", "accelerate")


def cases(arguments):
    """Every case, libraries side by side."""
    fixed = {
        "steps": arguments.steps,
        "device": arguments.device,
        "train": {"activations": "recompute"} | arguments.train,
    }
    shapes = [
        ("8b", "llama-3-8b", base, r, tokens, None)
        for base in ("nf4", "bf16")
        for r in (16, 64)
        for tokens in (2048, 8192)
    ] + [("70b", "llama-3-70b", "nf4", 16, 2048, CAP_BYTES)]
    if arguments.quick:
        shapes = [("tiny", "tiny", base, 4, 64, None) for base in ("nf4", "bf16")]
    for group, shape, base, r, tokens, cap in shapes:
        if group not in arguments.only and not arguments.quick:
            continue
        for library in arguments.libraries:
            name = f"{group} {base} r={r} {tokens} tokens"
            about = {"name": name, "shape": shape, "base": base, "r": r, "tokens": tokens}
            yield about | {"cap_bytes": cap, "library": library} | fixed


def run(case, limit):
    """Figures of a case, or why there are none."""
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {limit} seconds"}
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    lines = done.stderr.strip().splitlines()
    last = lines[-1] if lines else f"ended with {done.returncode}"
    return {"error": "out of memory" if "OutOfMemoryError" in done.stderr else last[:300]}


def goals(results):
    """(what, value, goal, whether it is reached) of those that these results tell."""
    by_name = {}
    for result in results:
        if "error" not in result["figures"]:
            case = result["case"]
            by_name.setdefault(case["name"], {})[case["library"]] = result["figures"]
    found = []

    def judge(what, value, goal, *, at_least):
        found.append((what, value, goal, value >= goal if at_least else value <= goal))

    for name, each in by_name.items():
        ours, peers = each.get("ince"), [f for key, f in each.items() if key != "ince"]
        if ours is None:
            continue
        if name.startswith("8b nf4") and peers:
            speed = ours["tokens_per_second"] / max(p["tokens_per_second"] for p in peers)
            memory = ours["peak_bytes"] / min(p["peak_bytes"] for p in peers)
            judge(f"{name}: tokens/s over the best peer's", speed, GOALS["speed"], at_least=True)
            judge(f"{name}: share of its memory", memory, GOALS["memory"], at_least=False)
        if name.startswith("70b"):
            size, share = ours["reserved_bytes"] / GIB, ours["share_of_peak"]
            judge(f"{name}: GiB reserved", size, GOALS["70b bytes"] / GIB, at_least=False)
            judge(f"{name}: share of the matmul peak", share, GOALS["70b share"], at_least=True)
    return found


def hardware(device):
    found = machine()
    if device != "cpu":
        import torch

        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "gpu_memory_bytes": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
        }
    return found


def markdown(record):
    lines = ["# Training on a GPU", ""]
    lines += [
        f"- {part}: {', '.join(f'{key} {value}' for key, value in record[part].items())}"
        for part in ("machine", "versions")
    ]
    lines += [f"- {record['date']}, `{record['command']}`", ""]
    lines += ["| case | library | tokens/s | share of peak | peak GiB | reserved GiB |"]
    lines += ["|---|---|---|---|---|---|"]
    for result in record["results"]:
        case, figures = result["case"], result["figures"]
        start = f"| {case['name']} | {case['library']} |"
        if "error" in figures:
            lines.append(f"{start} {figures['error'].replace('|', '/')} | | | |")
            continue
        lines.append(
            f"{start} {figures['tokens_per_second']:.0f} | {100 * figures['share_of_peak']:.1f}%"
            f" | {figures['peak_bytes'] / GIB:.2f} | {figures['reserved_bytes'] / GIB:.2f} |"
        )
    if record["goals"]:
        lines += ["", "| asked | measured | goal | reached |", "|---|---|---|---|"]
        for what, value, goal, reached in record["goals"]:
            lines.append(f"| {what} | {value:.3g} | {goal:.3g} | {'yes' if reached else 'no'} |")
    return "\n".join(lines) + "\n"


def parsed():
    parser = argparse.ArgumentParser(description="training on one GPU, beside the peers")
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--only", default="8b,70b", help="groups of cases, with a comma between")
    parser.add_argument("--libraries", default=",".join(NEEDED), help="with commas between")
    parser.add_argument("--steps", type=int, help="timed in each case, after two (8)")
    parser.add_argument("--limit", type=int, default=900, help="seconds of a case, at most")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--set", action="append", default=[], metavar="train.KEY=JSON")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: does it work?")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case is None and arguments.out is None:
        parser.error("--out is needed")
    arguments.steps = arguments.steps or (2 if arguments.quick else 8)
    arguments.only = arguments.only.split(",")
    arguments.libraries = arguments.libraries.split(",")
    unknown = {*arguments.only} - {"8b", "70b"} | {*arguments.libraries} - set(NEEDED)
    if unknown:
        parser.error(f"not known: {', '.join(sorted(unknown))}")
    arguments.train = {}
    for change in arguments.set:
        key, _, value = change.partition("=")
        if not key.startswith("train."):
            parser.error(f"--set takes train.KEY=JSON, not {change}")
        arguments.train[key.removeprefix("train.")] = json.loads(value)
    if arguments.device == "cpu" and not arguments.quick:
        parser.error("a CPU is for --quick alone")
    return arguments


def main():
    arguments = parsed()
    if arguments.case is not None:
        from training.gpu_case import run_case

        print(json.dumps(run_case(arguments.case)))
        return 0
    if arguments.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            print("no CUDA device: nothing was measured", file=sys.stderr)
            return 2
    for library in list(arguments.libraries):
        missing = [name for name in NEEDED[library] if importlib.util.find_spec(name) is None]
        if missing:
            print(f"without {library}: {', '.join(missing)} cannot be imported")
            arguments.libraries.remove(library)
    arguments.out.mkdir(parents=True, exist_ok=True)
    record = {"machine": hardware(arguments.device), "versions": versions(*PACKAGES)}
    record |= occasion() | {"results": [], "goals": []}
    for case in cases(arguments):
        figures = run(case, arguments.limit)
        record["results"].append({"case": case, "figures": figures})
        record["goals"] = goals(record["results"])
        print(f"{case['name']}, {case['library']}: {figures}", flush=True)
        # After each: what a time limit cuts off is only what is not there yet.
        text = json.dumps(record, indent=1)
        (arguments.out / "train_gpu.json").write_text(text, encoding="utf-8")
        (arguments.out / "train_gpu.md").write_text(markdown(record), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
