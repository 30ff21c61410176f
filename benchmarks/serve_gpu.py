"""Serving on one GPU: a model of Llama-3-8B's shape, the base beside 256 adapters over it.

    python benchmarks/serve_gpu.py [--rounds 3] [--requests 256] [--json FILE]
        [--device cuda|cpu] [--quick]

Needs a CUDA device and ince (`PYTHONPATH=src` is enough), nothing from a network: weights, adapters
and prompts are random. All requests come at once, and take turns: to the base, over 1 adapter, over
256 by Zipf's law (1.1); ratios are of output tokens in a second. The goal is that 256 adapters keep
90% of the base's. Adapters are r=8 and r=16, on all linear layers or on attention's, in bfloat16;
256 of them take 11 GB of the disk and of the GPU.

`--device cpu --quick` runs a tiny shape, which shows that the program works and nothing else. It
has run on a CPU only so far: no figure of a GPU is known.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from serving.drawn_adapters import write_adapters
from serving.ours import Ours
from serving.timeline import say, summary
from serving.workload import make_requests, over
from training.machine import machine, occasion, print_facts, versions
from training.tiny import tiny_model

from ince.formats.adapter import adapter_digest
from ince.serve.adapters import Folders

GOAL = 0.9
LLAMA_3_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
}


def random_model(device):
    """Llama-3-8B's shape in bfloat16, drawn on the device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            torch.manual_seed(0)
            model = LlamaForCausalLM(LlamaConfig(**LLAMA_3_8B))
    finally:
        torch.set_default_dtype(before)
    return model.eval().requires_grad_(False)


def loaded(arguments, place):
    """(model, tokenizer); the tokenizer is a tiny one, whose text nobody reads."""
    import ince

    small, tokenizer = ince.load_model(
        str(tiny_model(place / "tiny")), dtype=torch.float32, device="cpu"
    )
    if arguments.quick:
        return small.to(arguments.device), tokenizer
    return random_model(arguments.device), tokenizer


def facts(device):
    found = {"machine": machine()}
    if device != "cpu":
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = {
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
        }
    return found


def measure(arguments, place):
    """Rounds of each count of adapters, in turns."""
    counts = (0, 1, 4) if arguments.quick else (0, 1, 256)
    model, tokenizer = loaded(arguments, place)
    dtype = torch.float32 if arguments.quick else torch.bfloat16
    folders = write_adapters(place / "adapters", model, range(max(counts)), dtype=dtype)
    digests = {number: adapter_digest(folder) for number, folder in folders.items()}
    lengths = {"shortest": 64, "longest": 512, "system": 64, "news": (64, 128)}
    sizes = {"num_slots": max(counts), "memory_bytes": 32 << 30, "max_running": 256}
    sizes |= {"max_batch_tokens": 4096, "kv_bytes": 24 << 30, "block_dtype": dtype}
    if arguments.quick:
        lengths = {"shortest": 8, "longest": 40, "system": 16, "news": (4, 8)}
        sizes |= {"max_running": 8, "max_batch_tokens": 64, "kv_bytes": 8 << 20}
    # No token that the tiny tokenizer does not have.
    requests = make_requests(arguments.requests, len(tokenizer), 0, **lengths)
    source = Folders({digests[number]: folder for number, folder in folders.items()})
    found = {count: [] for count in counts}
    with Ours(model, tokenizer, source, **sizes) as ours:
        print(f"  {len(digests)} adapters loaded in {ours.warm(list(digests.values())):.1f} s")
        for turn in range(arguments.rounds + 1):
            for count in counts:
                mine = over(requests, list(range(count)), seed=count)
                told = summary(ours.run(mine, digests, salt=f"{turn} {count}"))
                if turn:  # the first turn warms up
                    found[count].append(told)
                    say(f"{count} adapters" if count else "base", told)
    of_base = {
        count: statistics.median(
            mine["tokens_per_second"] / base["tokens_per_second"]
            for mine, base in zip(found[count], found[0], strict=True)
        )
        for count in counts
    }
    return {"rounds": found, "of_base": of_base}


def main():
    parser = argparse.ArgumentParser(description="serving on one GPU, the base and 256 adapters")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--place", type=Path, help="folder that is kept")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="a tiny shape")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here; --device cpu --quick shows that it runs")
    if arguments.device == "cpu" and not arguments.quick:
        parser.error("a model of 8B parameters is not for a CPU; add --quick")
    if arguments.quick:
        arguments.rounds, arguments.requests = 1, 8
    packages = ("ince", "torch", "triton", "transformers")
    record = occasion() | facts(arguments.device) | {"versions": versions(*packages)}
    print_facts(record)
    with contextlib.ExitStack() as inside:
        place = arguments.place or Path(inside.enter_context(tempfile.TemporaryDirectory()))
        place.mkdir(parents=True, exist_ok=True)
        record |= measure(arguments, place)
    shares = ", ".join(
        f"{count} adapters {share:.2f}" for count, share in record["of_base"].items()
    )
    print(f"tokens/s, of the base's: {shares}")
    if arguments.quick:
        print("a tiny shape: it shows that the program works, and nothing else")
    else:
        share = record["of_base"][256]
        print(f"goal {GOAL}: {'reached' if share >= GOAL else 'missed'} ({share:.2f})")
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
