"""Optimizer state larger than its room on a GPU, beside bitsandbytes' paged AdamW.

    python benchmarks/optim_gpu.py --out FOLDER [--quick] [--rounds 5] [--device-bytes 1000000000]

A Llama of 0.82 billion parameters with random float32 weights, 6.6 GB of AdamW's state:

    ince            `PagedAdamW` with 1 GB of state on the device and the rest in pinned memory
    bitsandbytes    `PagedAdamW` in 32 bits, in CUDA's managed memory; the same room is left to it
                    by memory that is taken before
    torch           `AdamW` with all state on the device, for what paging costs

Each has a process of its own, one after the other, and takes steps of forward, backward and
update on random tokens. A time is the median of the rounds after two that warm up; the peak is
that of torch's allocator and, of managed memory, what the driver says is in use. Needs a CUDA
device; without one it says so and exits with 2. `PYTHONPATH=src` is enough where ince is not
installed. Goal: a step at least as quick as bitsandbytes', with the same peak.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

WHO = ("ince", "bitsandbytes", "torch")
WARM_UP = 2

# hidden, intermediate, heads, key-value heads, layers, vocabulary
SHAPE = (1536, 7168, 16, 8, 18, 32000)
QUICK_SHAPE = (256, 1024, 4, 2, 2, 4096)


def model_of(shape, device):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, intermediate, heads, kv_heads, layers, vocab = shape
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        num_hidden_layers=layers,
        vocab_size=vocab,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    with torch.device(device):
        return LlamaForCausalLM(config).train()


def optimizer_of(who, parameters, device_bytes):
    import torch

    if who == "torch":
        return torch.optim.AdamW(parameters, lr=1e-5)
    if who == "bitsandbytes":
        import bitsandbytes as bnb  # noqa: TID251

        return bnb.optim.PagedAdamW32bit(parameters, lr=1e-5)
    from ince.optim import PagedAdamW, PagesConfig

    return PagedAdamW(parameters, lr=1e-5, pages=PagesConfig(device=device_bytes))


def leave(num_bytes, device):
    """Take what is free but `num_bytes`: managed memory then pages as it would on a full GPU."""
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return torch.empty(max(0, free - num_bytes), dtype=torch.uint8, device=device)


def worker(who, arguments):
    """Steps of one optimizer; prints its figures as JSON."""
    import torch

    device = torch.device("cuda", 0)
    model = model_of(QUICK_SHAPE if arguments.quick else SHAPE, device)
    parameters = list(model.parameters())
    num = sum(p.numel() for p in parameters)
    optimizer = optimizer_of(who, parameters, arguments.device_bytes)
    length = 128 if arguments.quick else 1024
    ids = torch.randint(model.config.vocab_size, (2, length), device=device)

    def backward():
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()

    backward()
    torch.cuda.synchronize()
    total = torch.cuda.mem_get_info(device)[1]
    taken = leave(arguments.device_bytes, device) if who == "bitsandbytes" else None
    blocked = 0 if taken is None else taken.numel()
    lowest = total
    seconds, updates = [], []
    for _ in range(WARM_UP + arguments.rounds):
        optimizer.zero_grad(set_to_none=False)
        torch.cuda.synchronize()
        began = time.perf_counter()
        backward()
        torch.cuda.synchronize()
        middle = time.perf_counter()
        optimizer.step()
        torch.cuda.synchronize()
        ended = time.perf_counter()
        seconds.append(ended - began)
        updates.append(ended - middle)
        lowest = min(lowest, torch.cuda.mem_get_info(device)[0])
    figures = {
        "num_parameters": num,
        "state_bytes": 8 * num,
        "seconds": seconds[WARM_UP:],
        "update_seconds": updates[WARM_UP:],
        "allocated_peak": torch.cuda.max_memory_allocated(device) - blocked,
        "in_use_peak": total - lowest - blocked,
    }
    if who == "ince":
        figures["usage"] = vars(optimizer.usage())
    print(json.dumps(figures))


def markdown(facts, found):
    lines = ["# Optimizer state larger than its room on a GPU", ""]
    lines += [f"- {key}: {value}" for key, value in facts.items()]
    lines += ["", "| | step | update | allocated, peak | in use, peak |", "|---|---|---|---|---|"]
    for who, each in found.items():
        if "error" in each:
            lines.append(f"| {who} | {each['error']} | | | |")
            continue
        step, update = (statistics.median(each[key]) for key in ("seconds", "update_seconds"))
        lines.append(
            f"| {who} | {1e3 * step:.1f} ms | {1e3 * update:.1f} ms "
            f"| {each['allocated_peak'] / 1e9:.2f} GB | {each['in_use_peak'] / 1e9:.2f} GB |"
        )
    return "\n".join(lines) + "\n"


def facts_of():
    import torch
    from training.machine import occasion, versions

    gpu = torch.cuda.get_device_properties(0)
    return occasion() | versions("torch", "transformers", "bitsandbytes") | {"gpu": gpu.name}


def main():
    parser = argparse.ArgumentParser(description="paged optimizers on a GPU")
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device-bytes", type=int, default=1_000_000_000)
    parser.add_argument("--only", default=",".join(WHO))
    parser.add_argument("--quick", action="store_true", help="a small model: does it work?")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("no CUDA device: nothing was measured", file=sys.stderr)
        return 2
    if arguments.worker:
        worker(arguments.worker, arguments)
        return 0
    if arguments.out is None:
        parser.error("--out FOLDER is missing")
    arguments.out.mkdir(parents=True, exist_ok=True)
    facts, found = facts_of(), {}
    for who in arguments.only.split(","):
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--worker", who],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["ended without a word"])[-1]
            found[who] = {"error": said}
        else:
            found[who] = json.loads(done.stdout.splitlines()[-1])
        # After each: what a time limit cuts off is only what is not there yet.
        (arguments.out / "optim_gpu.json").write_text(json.dumps(facts | found, indent=1))
        (arguments.out / "optim_gpu.md").write_text(markdown(facts, found))
    print(markdown(facts, found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
