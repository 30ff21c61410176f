"""What four bits cost on a CPU: packing, expanding and multiplying, beside bitsandbytes and bf16.

    python benchmarks/nf4.py [--only quantize,gemv] [--json FILE] [--quick]

Sections:

    quantize    a weight to NF4
    dequantize  and back to bfloat16, against a copy of as many bytes
    linear      16, 64 and 512 rows, against torch's bfloat16 linear and bitsandbytes' layer
    gemv        one row, as in decoding
    gradients   to the input: time, and how far from those of the expanded weight

Times of a shared machine say little, ratios of times taken in turns say more: in each round all
are timed one after the other, each after calls that are not counted, until the caches hold what
it needs and nothing of another; a ratio is the median over the rounds.
"""

import argparse
import functools
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import sys
import time
from pathlib import Path

import bitsandbytes  # noqa: TID251
import bitsandbytes.functional  # noqa: TID251
import torch
from torch.nn import functional as F

import ince  # noqa: F401
from ince.ops import backends, dequantize_4bit, gemv_4bit, linear_4bit, quantize_4bit
from ince.ops.cpu import library, parts

BF16 = torch.bfloat16
BLOCKSIZE = 64
SQUARE = (2048, 2048)
WIDE = (4096, 14336)  # Llama-3 8B, down projection
TALL = (14336, 4096)  # its gate and up projections
SMALL = (576, 1536)  # SmolLM2-135M, down projection
GOALS = {"quantize": 20.0, "copy": 0.7, "linear": 1.15, "gemv": 0.5, "peer": 1.0, "grad": 1.0}


class Settings:
    """What the command line chose."""

    def __init__(self, *, quick, rounds):
        self.quick = quick
        self.rounds = 2 if quick else rounds

    def shape(self, shape):
        return (256, 512) if self.quick else shape

    def turns(self, shape):
        """Rounds for a weight of this shape, and calls before each that are not counted."""
        if self.quick or shape[0] * shape[1] <= 1 << 24:
            return self.rounds, 4
        return self.rounds // 3, 1


def timed(call):
    """Seconds."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def in_turns(calls, rounds, warm_up=4):
    """Times of each call: seconds by round."""
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            for _ in range(warm_up):
                call()
            times[name].append(timed(call))
    return times


def ratio(times, name, base):
    """The median over the rounds, and the ratio of the fastest."""
    pairs = zip(times[name], times[base], strict=True)
    return {
        "ratio": statistics.median(mine / other for mine, other in pairs),
        "best": min(times[name]) / min(times[base]),
    }


def show(times):
    for name, values in times.items():
        median, best = statistics.median(values) * 1e3, min(values) * 1e3
        print(f"  {name:28s} {median:9.3f} ms (fastest {best:.3f})")
    return {name: statistics.median(values) * 1e3 for name, values in times.items()}


def report(what, value, *, at_most=None, at_least=None):
    goal = f"at most {at_most}" if at_least is None else f"at least {at_least}"
    reached = value <= at_most if at_least is None else value >= at_least
    print(f"  {what}: {value:.3g}; goal: {goal}, {'reached' if reached else 'missed'}")


def label(shape):
    return "×".join(map(str, shape))


def quantize(settings):
    found = {}
    for shape, dtype in ((SQUARE, torch.float32), (SQUARE, BF16), (WIDE, BF16)):
        shape = settings.shape(shape)
        weight = torch.randn(shape).to(dtype)
        of_peer = functools.partial(
            bitsandbytes.functional.quantize_4bit, weight, quant_type="nf4", blocksize=BLOCKSIZE
        )
        calls = {
            "ince": functools.partial(quantize_4bit, weight, BLOCKSIZE, "nf4"),
            "ince, scales searched": functools.partial(
                quantize_4bit, weight, BLOCKSIZE, "nf4", scale_search=True
            ),
            "bitsandbytes": of_peer,
        }
        packed, absmax = calls["ince"]()
        codes, state = of_peer()
        is_equal = torch.equal(packed, codes) and torch.equal(absmax, state.absmax)
        name = f"{label(shape)} {str(dtype).removeprefix('torch.')}"
        print(f" {name}, equal to bitsandbytes: {is_equal}")
        times = in_turns(calls, settings.turns(shape)[0] // 3 or 1, 1)
        found[name] = {
            "ms": show(times),
            "times_as_quick": 1 / ratio(times, "ince", "bitsandbytes")["ratio"],
            "equal": is_equal,
        }
        report("times as quick", found[name]["times_as_quick"], at_least=GOALS["quantize"])
    return found


def dequantize(settings):
    found = {}
    for shape in (SQUARE, WIDE):
        shape = settings.shape(shape)
        weight = torch.randn(shape).to(BF16)
        packed, absmax = quantize_4bit(weight, BLOCKSIZE, "nf4")
        codes, state = bitsandbytes.functional.quantize_4bit(
            weight, quant_type="nf4", blocksize=BLOCKSIZE
        )
        moved = packed.numel() + 4 * absmax.numel() + 2 * weight.numel()  # bytes, in and out
        source = torch.randint(256, (moved // 2,), dtype=torch.uint8)
        kept, out = torch.zeros_like(source), torch.zeros_like(weight)
        calls = {
            "ince": functools.partial(dequantize_4bit, packed, absmax, BLOCKSIZE, shape, BF16),
            "bitsandbytes": functools.partial(
                bitsandbytes.functional.dequantize_4bit, codes, state
            ),
            "copy": source.clone,
        }
        compiled = library.active()
        if compiled is not None:
            held = parts.parts_of(packed, absmax, None, None, BLOCKSIZE, "nf4")
            calls["ince, memory kept"] = functools.partial(held.expand, compiled, out)
            calls["copy, memory kept"] = functools.partial(kept.copy_, source)
        print(f" {label(shape)}, {moved / 1e6:.1f} MB read and written")
        times = in_turns(calls, *settings.turns(shape))
        result = {"ms": show(times), "bytes": moved}
        result["of_bitsandbytes"] = ratio(times, "ince", "bitsandbytes")["ratio"]
        report("of bitsandbytes' time", result["of_bitsandbytes"], at_most=GOALS["peer"])
        for kind in ("", ", memory kept"):
            if f"ince{kind}" in times:
                share = 1 / ratio(times, f"ince{kind}", f"copy{kind}")["ratio"]
                result[f"of_copy{kind}"] = share
                speed = moved / statistics.median(times[f"copy{kind}"]) / 1e9
                report(f"of a copy's {speed:.0f} GB/s{kind}", share, at_least=GOALS["copy"])
        found[label(shape)] = result
    return found


def layers(shape):
    """The same weight: in bfloat16, packed, and as bitsandbytes' layer in evaluation."""
    weight = (torch.randn(shape) / shape[1] ** 0.5).to(BF16)
    packed, absmax = quantize_4bit(weight, BLOCKSIZE, "nf4")
    peer = bitsandbytes.nn.Linear4bit(
        shape[1], shape[0], bias=False, compute_dtype=BF16, quant_type="nf4"
    )
    peer.weight = bitsandbytes.nn.Params4bit(
        weight.clone(), requires_grad=False, quant_type="nf4", blocksize=BLOCKSIZE
    )
    return weight, packed, absmax, peer.to("cpu").eval()


def multiply(settings, shape, num_rows, product):
    shape = settings.shape(shape)
    weight, packed, absmax, peer = layers(shape)
    x = torch.randn(num_rows, shape[1]).to(BF16)
    calls = {
        "bfloat16": functools.partial(F.linear, x, weight),
        "ince": functools.partial(product, x, packed, absmax, BLOCKSIZE, shape),
        "bitsandbytes": functools.partial(peer, x),
    }
    expanded = dequantize_4bit(packed, absmax, BLOCKSIZE, shape, torch.float32)
    exact = x.float() @ expanded.T
    error = (calls["ince"]().float() - exact).abs().max().item() / exact.abs().max().item()
    print(f" {label(shape)}, rows {num_rows}; largest error {error:.1e} of the largest result")
    times = in_turns(calls, *settings.turns(shape))
    return {
        "ms": show(times),
        "of_bfloat16": ratio(times, "ince", "bfloat16")["ratio"],
        "of_bitsandbytes": ratio(times, "ince", "bitsandbytes")["ratio"],
        "bitsandbytes_of_bfloat16": ratio(times, "bitsandbytes", "bfloat16")["ratio"],
        "error": error,
    }


def linear(settings):
    found = {}
    for shape, num_rows in (
        (SQUARE, 4),
        (SQUARE, 16),
        (SQUARE, 64),
        (SQUARE, 512),
        (SMALL, 64),
        (WIDE, 64),
    ):
        result = multiply(settings, shape, num_rows, linear_4bit)
        found[f"{label(shape)}, {num_rows} rows"] = result
        goal = GOALS["linear"]
        report("of the bfloat16 linear's time", result["of_bfloat16"], at_most=goal)
        report("of bitsandbytes' time", result["of_bitsandbytes"], at_most=GOALS["peer"])
    return found


def gemv(settings):
    found = {}
    for shape in (WIDE, TALL, SQUARE, SMALL):
        result = multiply(settings, shape, 1, gemv_4bit)
        found[label(shape)] = result
        report("of the bfloat16 linear's time", result["of_bfloat16"], at_most=GOALS["gemv"])
        report("of bitsandbytes' time", result["of_bitsandbytes"], at_most=GOALS["peer"])
    return found


def gradients(settings):
    """To the input, of 512 rows. Errors in units of the last place of bfloat16."""
    found = {}
    for shape in (SQUARE, WIDE):
        shape = settings.shape(shape)
        weight, packed, absmax, _ = layers(shape)
        grad = torch.randn(512, shape[0]).to(BF16)
        expanded = dequantize_4bit(packed, absmax, BLOCKSIZE, shape, BF16)
        ops = torch.ops.ince
        args = (grad, packed, absmax, None, None, BLOCKSIZE, list(shape), "nf4")
        calls = {
            "bfloat16": functools.partial(torch.matmul, grad, weight),
            "ince": functools.partial(ops.linear_4bit_input_grad, *args),
        }
        exact = grad.float() @ expanded.float()
        error = ((calls["ince"]().float() - exact).abs() / exact.abs().clamp(min=1e-2)).max()
        units = error.item() / 2.0**-8
        print(f" {label(shape)}")
        times = in_turns(calls, settings.turns(shape)[0] // 3 or 1, 1)
        result = {"ms": show(times), "of_bfloat16": ratio(times, "ince", "bfloat16")["ratio"]}
        result["error_units"] = units
        report("largest error, in units of bfloat16's last place", units, at_most=GOALS["grad"])
        found[label(shape)] = result
    return found


SECTIONS = {
    "quantize": quantize,
    "dequantize": dequantize,
    "linear": linear,
    "gemv": gemv,
    "gradients": gradients,
}


def machine():
    """What the figures were taken on, without the machine's name."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8").splitlines()
        model = next((t.split(":")[1].strip() for t in lines if t.startswith("model name")), model)
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    backend = next(each for each in backends.report() if each.device_type == "cpu")
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gb": round(pages / 1e9, 1),
        "threads": torch.get_num_threads(),
        "backend": f"{backend.backend}, {backend.detail}",
    }


def versions():
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in ("torch", "bitsandbytes", "ince")
    }


def main():
    parser = argparse.ArgumentParser(description="Four bits on a CPU, beside bitsandbytes")
    parser.add_argument("--only", default="", help="beginnings of sections, with commas between")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--quick", action="store_true", help="tiny weights: does it work?")
    parser.add_argument("--rounds", type=int, default=45, help="of calls, in turns")
    arguments = parser.parse_args()
    wanted = tuple(part for part in arguments.only.split(",") if part)
    chosen = {k: v for k, v in SECTIONS.items() if not wanted or k.startswith(wanted)}
    if not chosen:
        parser.error(f"--only takes {', '.join(SECTIONS)}")
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    figures = {
        "machine": machine(),
        "versions": versions(),
        "command": shlex.join(["python", *sys.argv]),
    }
    for what, value in figures.items():
        print(f"{what}: {value}")
    settings = Settings(quick=arguments.quick, rounds=arguments.rounds)
    for name, section in chosen.items():
        print(f"{name}:")
        start = time.perf_counter()
        figures[name] = section(settings) | {"seconds": time.perf_counter() - start}
        if arguments.json:
            arguments.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
