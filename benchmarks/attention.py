"""Attention over packed rows on a CPU, beside PyTorch's, in one process and in turns.

    python benchmarks/attention.py [--json FILE] [--quick] [--rounds N]

Forward and backward, float32, 9 query heads over 3 key heads of width 64 (SmolLM2-135M):

    ince      `ince.ops.packed_attention`
    masked    `scaled_dot_product_attention` with the block-diagonal mask
    separate  `scaled_dot_product_attention` for each document, causal; cut and put together again

Each time of PyTorch's is divided by that of ince's just before it: machines are shared, and ratios
of times taken in turns say more than times.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch
from torch.nn.functional import scaled_dot_product_attention

from ince.ops import attention_tiles, cpu, packed_attention

HEADS, KEY_HEADS, WIDTH = 9, 3, 64
# rows, places, documents in a row
CASES = {"packed": (1, 1016, 6), "one": (1, 1024, 1), "rows": (4, 256, 1)}
QUICK = {"packed": (1, 40, 3)}


def steps(rows, length, documents):
    """Three ways from q, k and v to the result: by name, and the tensors they start from."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = (
        torch.randn(rows, length, heads, WIDTH, generator=generator).transpose(1, 2)
        for heads in (HEADS, KEY_HEADS, KEY_HEADS, HEADS)
    )
    operands = [tensor.requires_grad_() for tensor in (q, k, v)]
    document = torch.arange(length) * documents // length
    mask = (document[:, None] == document).tril().expand(rows, 1, length, length).contiguous()
    tiles = attention_tiles(mask)
    sizes = document.bincount().tolist()

    def ince():
        return packed_attention(q, k, v, mask, WIDTH**-0.5, tiles=tiles)[0]

    def masked():
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)

    def separate():
        pieces = zip(*(tensor.split(sizes, 2) for tensor in operands), strict=True)
        each = [scaled_dot_product_attention(*p, is_causal=True, enable_gqa=True) for p in pieces]
        return torch.cat(each, 2)

    return {"ince": ince, "masked": masked, "separate": separate}, operands, grad


def timed(forward, operands, grad):
    """Milliseconds of the forward pass, of both passes, and what they gave."""
    start = time.perf_counter()
    out = forward()
    middle = time.perf_counter()
    grads = torch.autograd.grad(out, operands, grad)
    end = time.perf_counter()
    return (middle - start) * 1e3, (end - start) * 1e3, (out, *grads)


def measure(case, rounds):
    """Medians, ratios to ince, and how far the results are apart."""
    ways, operands, grad = steps(*case)
    results = {name: timed(way, operands, grad)[2] for name, way in ways.items()}
    times = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            times[name].append(timed(way, operands, grad)[:2])
    found = {}
    for name, values in times.items():
        ratios = sorted(each[1] / own[1] for each, own in zip(values, times["ince"], strict=True))
        pairs = zip(results[name], results["ince"], strict=True)
        found[name] = {
            "forward_ms": statistics.median(value[0] for value in values),
            "both_ms": statistics.median(value[1] for value in values),
            "ratio": statistics.median(ratios),
            "ratio_least": ratios[0],
            "ratio_most": ratios[-1],
            "difference": max((a - b).abs().max().item() for a, b in pairs),
        }
    return found


def processor():
    """Its model, without the machine's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main():
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description="attention over packed rows, beside PyTorch's")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--quick", action="store_true", help="a tiny row: does it work?")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds takes a number from 1 on")
    figures = {
        "cpu": processor(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "ince_isa": cpu.use_instruction_set() or "none: plain PyTorch",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    print(figures)
    for name, case in (QUICK if arguments.quick else CASES).items():
        figures[name] = measure(case, 2 if arguments.quick else arguments.rounds)
        print(f"{name}: {case[0]} x {case[1]}, {case[2]} documents in a row")
        for way, each in figures[name].items():
            print(
                f"  {way:9s} forward {each['forward_ms']:7.2f} ms, both {each['both_ms']:7.2f} ms;"
                f" of ince {each['ratio']:.2f} ({each['ratio_least']:.2f} to"
                f" {each['ratio_most']:.2f}); differs by {each['difference']:.1g}"
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
