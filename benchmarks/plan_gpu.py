"""Was the plan true on one GPU: planned against measured peak of Llama-3 shapes, random weights.

    python benchmarks/plan_gpu.py --out FOLDER [--only 8b,70b] [--steps 4] [--limit SECONDS]
        [--device cuda|cpu] [--quick]

Needs a CUDA device, torch and ince (`PYTHONPATH=src` is enough), nothing from a network. Without a
device it says so, and ends with 2. `--device cpu --quick` runs a tiny shape, which shows that the
program works and nothing else.

Each case has a process of its own, weights drawn on the GPU layer by layer as in `train_gpu.py`.
Measured is the most that torch's allocator had given out, beside the plan's tensors alone, since a
context and libraries are not the allocator's; what it had reserved is shown as well, over which
fragmentation has its say. The time is planned from the device's own rates, measured first.

Goal: no peak off by more than 5%. Results go to FOLDER/plan_gpu.json and FOLDER/plan_gpu.md, after
each case. It has run on a CPU only so far: no figure of a GPU is known.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from training.machine import machine, occasion, versions

GIB = 1 << 30
GOAL = 0.05
PACKAGES = ("ince", "torch", "triton", "transformers")
RECOMPUTE = {"activations": "recompute"}
PAGED, IN_8_BITS = ({**RECOMPUTE, "optimizer": name} for name in ("paged_adamw", "adamw_8bit"))
CASES = (
    ("8b nf4 r=16 2048", "llama-3-8b", "nf4", 16, 2048, RECOMPUTE),
    ("8b nf4 r=16 2048 kept", "llama-3-8b", "nf4", 16, 2048, {}),
    ("8b nf4 r=64 2048 8-bit", "llama-3-8b", "nf4", 64, 2048, IN_8_BITS),
    ("8b nf4 r=64 2048 paged", "llama-3-8b", "nf4", 64, 2048, PAGED),
    ("8b nf4 r=16 2048 lion", "llama-3-8b", "nf4", 16, 2048, {**RECOMPUTE, "optimizer": "lion"}),
    ("8b nf4 r=16 8192", "llama-3-8b", "nf4", 16, 8192, RECOMPUTE),
    ("8b nf4 r=16 8192 offloaded", "llama-3-8b", "nf4", 16, 8192, {"activations": "offload"}),
    ("8b bf16 r=16 2048", "llama-3-8b", "bf16", 16, 2048, RECOMPUTE),
    ("70b nf4 r=16 2048", "llama-3-70b", "nf4", 16, 2048, RECOMPUTE),
    ("70b nf4 r=64 2048 paged", "llama-3-70b", "nf4", 64, 2048, PAGED),
    ("70b nf4 r=64 2048 8-bit", "llama-3-70b", "nf4", 64, 2048, IN_8_BITS),
)
QUICK = (
    ("tiny nf4 r=4 64", "tiny", "nf4", 4, 64, RECOMPUTE),
    ("tiny float r=4 64 lion", "tiny", "bf16", 4, 64, {"optimizer": "lion"}),
)


def cases(arguments):
    for name, shape, base, r, tokens, train in QUICK if arguments.quick else CASES:
        if arguments.quick or name.split()[0] in arguments.only:
            yield {
                "name": name,
                "shape": shape,
                "base": base,
                "r": r,
                "tokens": tokens,
                "train": train,
                "steps": arguments.steps,
                "device": arguments.device,
                "cap_bytes": None,
            }


def plan_of(case, config):
    """(memory, time) as they are planned, of tensors alone."""
    from ince.plan import Calibration, Overheads, Setup, plan_memory, plan_time, this_device
    from ince.plan.shape_source import shape_of_values

    shape = shape_of_values(config.to_dict(), name=case["shape"], where=case["shape"])
    on_cpu = case["device"] == "cpu"
    setup = Setup(
        method="qlora" if case["base"] == "nf4" else "lora",
        r=case["r"],
        length=case["tokens"],
        num_targets=case["tokens"] - 1,
        value_bytes=4 if on_cpu else 2,
        on_cpu=on_cpu,
        **case["train"],
    )
    memory = plan_memory(shape, setup, Overheads.none())
    rate = Calibration(this_device(case["device"])).rate(setup.value_bytes, case["device"])
    return memory, plan_time(shape, setup, rate)


def run_case(case):
    """Plan and measurement, in this process."""
    import torch
    from training.drawn import config_of
    from training.gpu_case import Clock, train_ince
    from training.memory import PeakMemory

    is_cpu = case["device"] == "cpu"
    memory, time = plan_of(case, config_of(case["shape"]))
    watch = PeakMemory() if is_cpu else None
    if not is_cpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    clock = Clock(case["device"])
    with tempfile.TemporaryDirectory() as place:
        dtype = torch.float32 if is_cpu else torch.bfloat16
        train_ince(case, dtype, Path(place))
    seconds = sorted(clock.seconds())
    if watch is None:
        measured, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    else:
        measured, reserved = watch.figures()["own_peak"], watch.figures()["peak"]
    speed = case["tokens"] / seconds[len(seconds) // 2]
    return {
        "planned_bytes": memory.peak.total,
        "planned_parts": dict(memory.peak.parts),
        "peak_at": memory.peak.name,
        "measured_bytes": measured,
        "reserved_bytes": reserved,
        "error": memory.peak.total / measured - 1,
        "planned_tokens_per_second": time.tokens_per_second,
        "measured_tokens_per_second": speed,
        "time_error": speed / time.tokens_per_second - 1,
    }


def run(case, limit):
    """Figures of a case in a process of its own, or why there are none."""
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {limit} seconds"}
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if "OutOfMemoryError" in done.stderr:
        return {"failed": "out of memory"}
    lines = done.stderr.strip().splitlines()
    return {"failed": lines[-1][:300] if lines else f"ended with {done.returncode}"}


def markdown(record):
    lines = ["# Planned against measured on a GPU", ""]
    lines += [
        f"- {part}: {', '.join(f'{key} {value}' for key, value in record[part].items())}"
        for part in ("machine", "versions")
    ]
    lines += [f"- {record['date']}, `{record['command']}`", ""]
    lines += ["| case | planned GiB | measured | error | reserved | at | time error |"]
    lines += ["|---|---|---|---|---|---|---|"]
    errors = []
    for result in record["results"]:
        name, found = result["case"]["name"], result["figures"]
        if "failed" in found:
            lines.append(f"| {name} | {found['failed'].replace('|', '/')} | | | | | |")
            continue
        errors.append(abs(found["error"]))
        sizes = [found[f"{which}_bytes"] / GIB for which in ("planned", "measured", "reserved")]
        lines.append(
            f"| {name} | {sizes[0]:.2f} | {sizes[1]:.2f} | {found['error']:+.1%} | {sizes[2]:.2f}"
            f" | {found['peak_at']} | {found['time_error']:+.0%} |"
        )
    if errors:
        verdict = "reached" if max(errors) <= GOAL else "missed"
        lines += ["", f"Worst error {max(errors):.1%}, goal {GOAL:.0%}: {verdict}."]
    return "\n".join(lines) + "\n"


def parsed():
    parser = argparse.ArgumentParser(description="planned against measured peaks on one GPU")
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--only", default="8b,70b", help="groups of cases, with a comma between")
    parser.add_argument("--steps", type=int, help="timed in each case, after two (4)")
    parser.add_argument("--limit", type=int, default=900, help="seconds of a case, at most")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="a tiny shape: does it work?")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case is None and arguments.out is None:
        parser.error("--out is needed")
    arguments.steps = arguments.steps or (2 if arguments.quick else 4)
    arguments.only = arguments.only.split(",")
    if unknown := {*arguments.only} - {"8b", "70b"}:
        parser.error(f"not known: {', '.join(sorted(unknown))}")
    if arguments.device == "cpu" and not arguments.quick:
        parser.error("a CPU is for --quick alone")
    return arguments


def main():
    arguments = parsed()
    if arguments.case is not None:
        print(json.dumps(run_case(arguments.case)))
        return 0
    about = machine()
    if arguments.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            print("no CUDA device: nothing was measured", file=sys.stderr)
            return 2
        properties = torch.cuda.get_device_properties(0)
        about |= {
            "gpu": properties.name,
            "gpu_memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
        }
    arguments.out.mkdir(parents=True, exist_ok=True)
    record = {"machine": about, "versions": versions(*PACKAGES)} | occasion() | {"results": []}
    for case in cases(arguments):
        figures = run(case, arguments.limit)
        record["results"].append({"case": case, "figures": figures})
        print(f"{case['name']}: {figures}", flush=True)
        # After each: what a time limit cuts off is only what is not there yet.
        text = json.dumps(record, indent=1)
        (arguments.out / "plan_gpu.json").write_text(text, encoding="utf-8")
        (arguments.out / "plan_gpu.md").write_text(markdown(record), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
