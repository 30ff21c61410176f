"""The 4-bit operators on a GPU: first whether they are right, then what they cost.

    python benchmarks/nf4_gpu.py --out FOLDER [--quick] [--only checks,dequantize,rows]

Needs a CUDA device, torch and Triton, nothing from a network; `PYTHONPATH=src` is enough where
ince is not installed. bitsandbytes is timed beside where it can be imported. Without a GPU it
says so and exits with 2; with 3 where a kernel does not equal the reference.

Sections:

    checks      every kernel against the reference on the CPU: to the bit where weights are packed
                and expanded, within the rounding of sums where they are multiplied
    dequantize  bytes read and written in a second, as a share of what a plain copy moves
    linear      4096 rows, beside torch's bf16 linear on the same weight in 16 bits
    row         a single row, likewise; and what a call costs the processor that makes it
    rows        2 to 4096 rows by the fused kernel and by expansion: where the one should hand over
    gradient    the gradient by the input of 4096 rows
    quantize    with and without a search for scales

Times are those of the GPU alone (CUDA events behind a wait long enough to queue the call), each
call in turns with its peers, the second-level cache filled with other bytes before each. A time
is the median of its rounds. Results go to FOLDER/nf4_gpu.json and FOLDER/nf4_gpu.md.
"""

import argparse
import datetime as dt
import json
import math
import platform
import shlex
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from ince.ops import BLOCKSIZES, QUANT_TYPES, reference

SHAPES = ((4096, 4096), (4096, 14336), (14336, 4096), (8192, 28672))  # (in, out)
QUICK_SHAPES = ((1024, 2048),)
ROWS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
BLOCKSIZE = 64
GOALS = {
    "dequantize": ("share of the copy bandwidth, bf16, double quantization", ">=", 0.85),
    "linear": ("time at 4096 rows over that of the bf16 linear", "<=", 1.10),
    "row": ("times quicker than the bf16 linear at one row", ">=", 2.5),
}


# ---------------------------------------------------------------------------------------- right


def as_bytes(tensor):
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8)


def is_equal(found, expected):
    return all(
        one.shape == other.shape and torch.equal(as_bytes(one), as_bytes(other))
        for one, other in zip(found, expected, strict=True)
    )


def many_magnitudes(num_weights, dtype, blocksize, seed):
    """Normal weights in blocks from 1e-42 (1e-7 in float16) to 1e4, one block of zeros."""
    weight = torch.randn(num_weights, generator=torch.Generator().manual_seed(seed))
    num_blocks = num_weights // blocksize
    if num_blocks:
        blocks = weight[: num_blocks * blocksize].view(num_blocks, blocksize)
        least = -7 if dtype == torch.float16 else -42
        blocks *= torch.logspace(least, 4, num_blocks)[:, None]
        blocks[num_blocks // 2] = 0
    return weight.to(dtype)


def bit_checks(device):
    """Yield (what, whether it holds) of packing and expanding."""
    from ince.ops.triton import launch

    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    for quant_type in QUANT_TYPES:
        for blocksize in BLOCKSIZES:
            holds = {"quantize": True, "search": True, "dequantize": True, "nested": True}
            for number, dtype in enumerate(dtypes):
                for size in (1, blocksize - 1, 3 * blocksize, 40 * blocksize + 7 + number):
                    weight = many_magnitudes(size, dtype, blocksize, number)
                    # A search is one kernel more to compile, for a second each: one type is enough.
                    for name in (
                        ("search", "quantize") if dtype == torch.bfloat16 else ("quantize",)
                    ):
                        args = (blocksize, quant_type, name == "search")
                        expected = reference.quantize_4bit(weight, *args)
                        found = launch.quantize_4bit(weight.to(device), *args)
                        holds[name] &= is_equal(found, expected)
                    packed, absmax = expected
                    parts = (packed, absmax, None, None)
                    nested = (packed, *reference.quantize_absmax(absmax))
                    for name, each in (("dequantize", parts), ("nested", nested)):
                        there = [None if part is None else part.to(device) for part in each]
                        for out in dtypes:
                            rest = (blocksize, (size,), out, quant_type)
                            expected = reference.dequantize_4bit(*each, *rest)
                            found = launch.dequantize_4bit(*there, *rest)
                            holds[name] &= is_equal((found,), (expected,))
            for name, held in holds.items():
                yield f"{name} {quant_type}, blocks of {blocksize}, to the bit", held
    yield "scales in 8 bits, to the bit for the mean that the device takes", scales_hold(device)


def scales_hold(device):
    """A mean is a sum in the device's own order: all else must follow from it to the bit."""
    from ince.ops.triton import launch

    for num_scales in (1, 255, 256, 5000, 65_536):
        generator = torch.Generator().manual_seed(num_scales)
        absmax = torch.randn(num_scales, generator=generator).abs()
        codes, nested, offset = launch.quantize_absmax(absmax.to(device))
        if not math.isclose(float(offset), float(absmax.double().mean()), rel_tol=1e-6):
            return False
        # The same mean, exactly, for the reference: its own is taken off and the device's put on.
        expected = coded_with_mean(absmax, offset.cpu())
        if not is_equal((codes, nested), expected):
            return False
        back = launch.dequantize_absmax(codes, nested, offset)
        expected = reference.dequantize_absmax(codes.cpu(), nested.cpu(), offset.cpu())
        if not is_equal((back,), (expected,)):
            return False
    return True


def coded_with_mean(absmax, offset):
    class Given(torch.Tensor):
        """A tensor whose mean is known."""

        def mean(self):
            return offset

        def reshape(self, *shape):
            return super().reshape(*shape).as_subclass(Given)

    codes, nested, _ = reference.quantize_absmax(absmax.as_subclass(Given))
    return codes.as_subclass(torch.Tensor), nested.as_subclass(torch.Tensor)


def sum_checks(device, shapes):
    """Yield (what, whether it holds) of products, through the operators as a model calls them."""
    from ince.ops.triton import multiply

    limits = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
    fused, single = multiply._FUSED, multiply._GEMV
    for number, (in_features, out_features, blocksize) in enumerate(shapes):
        # One launch setting for each shape, another for the next: all are compiled and checked.
        multiply._FUSED = (fused[number % len(fused)],)
        multiply._GEMV = (single[number % len(single)],)
        shape = (out_features, in_features)
        generator = torch.Generator().manual_seed(number)
        weight = torch.randn(shape, generator=generator)
        quant_type = QUANT_TYPES[number % 3]
        packed, absmax = reference.quantize_4bit(weight, blocksize, quant_type, False)
        here = (packed, absmax, None, None)
        if number % 2:
            here = (packed, *reference.quantize_absmax(absmax))
        there = [None if part is None else part.to(device) for part in here]
        rest = (blocksize, shape, quant_type)
        for dtype, limit in limits.items():
            exact = reference.dequantize_4bit(*here, blocksize, shape, dtype, quant_type).double()
            for num_rows in (1, 2, 17, 200, 600):
                x = torch.randn(num_rows, in_features, generator=generator).to(dtype)
                bias = torch.randn(out_features, generator=generator).to(dtype)
                grad = torch.randn(num_rows, out_features, generator=generator).to(dtype)
                on_device = x.to(device, copy=True).requires_grad_()
                operator = torch.ops.ince.gemv_4bit if num_rows == 1 else torch.ops.ince.linear_4bit
                y = operator(on_device, *there, bias.to(device), *rest)
                y.backward(grad.to(device))
                pairs = (
                    (y.detach(), x.double() @ exact.T + bias.double()),
                    (on_device.grad, grad.double() @ exact),
                )
                holds = all(
                    float((found.cpu().double() - wanted).abs().max())
                    <= limit * float(wanted.abs().max())
                    for found, wanted in pairs
                )
                what = f"{num_rows} rows, {in_features} to {out_features}, {str(dtype)[6:]}"
                yield f"{what}, {quant_type}, blocks of {blocksize}: product and gradient", holds
    multiply._FUSED, multiply._GEMV = fused, single


def checks(device):
    """Each check as (what, whether it holds); what failed is printed at once."""
    from ince.ops import triton as backend

    shapes = (
        (96, 40, 64),
        (1536, 576, 64),
        (2112, 48, 4096),
        (4096, 1024, 128),
        (1024, 2048, 256),
        (2048, 512, 32),
        (130, 7, 64),
    )
    done = []
    for what, holds in (*bit_checks(device), *sum_checks(device, shapes)):
        if not holds:
            print(f"  NOT EQUAL: {what}", flush=True)
        done.append((what, holds))
    # Only now: it is found out at the first call.
    reason = backend.status().fallback_reason
    done.append(
        (f"the kernels are in use ({reason})" if reason else "the kernels are in use", not reason)
    )
    return done


# ---------------------------------------------------------------------------------------- quick


class Clock:
    """Times calls on a GPU."""

    def __init__(self, device, rounds):
        self.rounds = rounds
        properties = torch.cuda.get_device_properties(device)
        self.filler = torch.empty(2 * properties.L2_cache_size, dtype=torch.uint8, device=device)

    def once(self, call):
        """Seconds of the GPU for what `call` queues."""
        self.filler.zero_()
        # The GPU waits here while the processor queues the call, so that its time is not counted.
        torch.cuda._sleep(2_000_000)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def turns(self, calls):
        """Median seconds of each of `calls`, by name, taken in turns."""
        for call in calls.values():
            for _ in range(3):
                call()
        times = {name: [] for name in calls}
        for _ in range(self.rounds):
            for name, call in calls.items():
                times[name].append(self.once(call))
        return {name: statistics.median(each) for name, each in times.items()}

    def called(self, call, count=200):
        """Seconds between two of many calls in a row: the slower of processor and GPU."""
        call()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            call()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / count


class Weight:
    """One weight in bf16, in ince's 4 bits with and without 8-bit scales, and bitsandbytes'."""

    def __init__(self, in_features, out_features, device, peer):
        self.shape = (out_features, in_features)
        generator = torch.Generator(device).manual_seed(0)
        self.full = torch.randn(
            self.shape, generator=generator, device=device, dtype=torch.bfloat16
        )
        packed, absmax = torch.ops.ince.quantize_4bit(self.full, BLOCKSIZE, "nf4", False)
        self.plain = (packed, absmax, None, None)
        self.nested = (packed, *torch.ops.ince.quantize_absmax(absmax))
        self.rest = (BLOCKSIZE, list(self.shape), "nf4")
        self.peer = peer
        if peer is not None:
            self.peer_packed, self.peer_state = peer.functional.quantize_4bit(
                self.full, blocksize=BLOCKSIZE, compress_statistics=True, quant_type="nf4"
            )

    def rows(self, num_rows):
        generator = torch.Generator(self.full.device).manual_seed(num_rows)
        size = (num_rows, self.shape[1])
        return torch.randn(size, generator=generator, device=self.full.device, dtype=torch.bfloat16)

    def expand(self, parts):
        rest = (BLOCKSIZE, list(self.shape), torch.bfloat16, "nf4")
        return lambda: torch.ops.ince.dequantize_4bit(*parts, *rest)

    def product(self, x, parts, operator=None):
        operator = operator or torch.ops.ince.linear_4bit
        return lambda: operator(x, *parts, None, *self.rest)

    def with_peer(self, calls, name, call):
        return calls | ({name: call} if self.peer is not None else {})

    def peer_product(self, x):
        return lambda: self.peer.matmul_4bit(x, self.peer_packed, quant_state=self.peer_state)

    def peer_expand(self):
        return lambda: self.peer.functional.dequantize_4bit(self.peer_packed, self.peer_state)


def num_bytes(parts):
    return sum(part.numel() * part.element_size() for part in parts if part is not None)


def time_dequantize(clock, weight):
    source, target = torch.empty_like(weight.full), torch.empty_like(weight.full)
    calls = {
        "copy": lambda: target.copy_(source),
        "ince": weight.expand(weight.nested),
        "ince_plain": weight.expand(weight.plain),
    }
    seconds = clock.turns(weight.with_peer(calls, "bitsandbytes", weight.peer_expand()))
    written = num_bytes([weight.full])
    copied = 2 * written / seconds["copy"]
    moved = {
        name: written + num_bytes(weight.plain if name == "ince_plain" else weight.nested)
        for name in seconds
        if name != "copy"
    }
    share = {name: moved[name] / seconds[name] / copied for name in moved}
    return {"seconds": seconds, "copy_bytes_per_second": copied, "share": share}


def time_product(clock, weight, num_rows):
    x = weight.rows(num_rows)
    operator = torch.ops.ince.gemv_4bit if num_rows == 1 else torch.ops.ince.linear_4bit
    calls = {
        "bf16": lambda: F.linear(x, weight.full),
        "ince": weight.product(x, weight.nested, operator),
        "ince_plain": weight.product(x, weight.plain, operator),
    }
    calls = weight.with_peer(calls, "bitsandbytes", weight.peer_product(x))
    seconds = clock.turns(calls)
    ratio = {name: seconds[name] / seconds["bf16"] for name in seconds}
    result = {"seconds": seconds, "ratio": ratio}
    if num_rows == 1:
        result["speedup"] = {name: 1 / value for name, value in ratio.items()}
        result["called_seconds"] = {name: clock.called(call) for name, call in calls.items()}
    return result


def time_rows(clock, weight):
    """Both ways at each number of rows, whatever `MAX_FUSED_ROWS` says."""
    from ince.ops.triton import multiply

    chosen = multiply.MAX_FUSED_ROWS

    def fused(x, limit):
        call = weight.product(x, weight.nested)

        def run():
            multiply.MAX_FUSED_ROWS = limit
            try:
                return call()
            finally:
                multiply.MAX_FUSED_ROWS = chosen

        return run

    result = {}
    for num_rows in ROWS:
        x = weight.rows(num_rows)
        calls = {
            "bf16": lambda x=x: F.linear(x, weight.full),
            "fused": fused(x, 1 << 30),
            "expanded": fused(x, 0),
        }
        calls = weight.with_peer(calls, "bitsandbytes", weight.peer_product(x))
        result[num_rows] = clock.turns(calls)
    return {"seconds": result, "max_fused_rows": chosen}


def time_gradient(clock, weight, num_rows=4096):
    generator = torch.Generator(weight.full.device).manual_seed(1)
    size = (num_rows, weight.shape[0])
    grad = torch.randn(size, generator=generator, device=weight.full.device, dtype=torch.bfloat16)
    operator = torch.ops.ince.linear_4bit_input_grad
    calls = {
        "bf16": lambda: grad @ weight.full,
        "ince": lambda: operator(grad, *weight.nested, *weight.rest),
    }
    seconds = clock.turns(calls)
    return {"seconds": seconds, "ratio": {name: t / seconds["bf16"] for name, t in seconds.items()}}


def time_quantize(clock, weight):
    quantize = torch.ops.ince.quantize_4bit
    calls = {
        "ince": lambda: quantize(weight.full, BLOCKSIZE, "nf4", False),
        "ince_search": lambda: quantize(weight.full, BLOCKSIZE, "nf4", True),
    }
    if weight.peer is not None:
        run = weight.peer.functional.quantize_4bit
        calls["bitsandbytes"] = lambda: run(weight.full, blocksize=BLOCKSIZE, quant_type="nf4")
    return {"seconds": clock.turns(calls)}


SECTIONS = {
    "dequantize": time_dequantize,
    "linear": lambda clock, weight: time_product(clock, weight, 4096),
    "row": lambda clock, weight: time_product(clock, weight, 1),
    "rows": time_rows,
    "gradient": time_gradient,
    "quantize": time_quantize,
}


# --------------------------------------------------------------------------------------- report


def goal_value(section, measured):
    """What the section's goal is about."""
    key = {"dequantize": "share", "linear": "ratio", "row": "speedup"}[section]
    return {name: value for name, value in measured[key].items() if name != "bf16"}


def is_met(section, value):
    _, sign, goal = GOALS[section]
    return value >= goal if sign == ">=" else value <= goal


def machine(peer):
    from ince.ops import triton as backend

    properties = torch.cuda.get_device_properties(0)
    status = backend.status()
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "backend": f"{status.backend}: {status.detail}",
        "fallback_reason": status.fallback_reason,
        "bitsandbytes": None if peer is None else peer.__version__,
    }


def tuned():
    from ince.ops.triton import tuning

    return {str(key[1]): vars(value) for key, value in tuning._found.items()}


def microseconds(seconds):
    return ", ".join(f"{name} {1e6 * value:.1f}" for name, value in seconds.items())


def markdown(record):
    lines = ["# 4-bit operators on a GPU", ""]
    lines += [f"- {key}: {value}" for key, value in record["machine"].items()]
    if record["checks"]:
        failed = [what for what, holds in record["checks"] if not holds]
        lines += ["", "## Checks against the reference", ""]
        lines += [f"{len(record['checks']) - len(failed)} of {len(record['checks'])} hold.", ""]
        lines += [f"- **NOT EQUAL**: {what}" for what in failed]
    for section, by_shape in record["measured"].items():
        lines += ["", f"## {section}", ""]
        if section in GOALS:
            what, sign, goal = GOALS[section]
            lines += [f"Goal: {what} {sign} {goal}.", "", "| in, out | value | met | µs |"]
            lines += ["|---|---|---|---|"]
            for shape, measured in by_shape.items():
                values = goal_value(section, measured)
                shown = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
                met = "yes" if is_met(section, values["ince"]) else "no"
                lines.append(f"| {shape} | {shown} | {met} | {microseconds(measured['seconds'])} |")
        else:
            lines += ["| in, out | µs |", "|---|---|"]
            for shape, measured in by_shape.items():
                seconds = measured["seconds"]
                if section == "rows":
                    for num_rows, each in seconds.items():
                        lines.append(f"| {shape}, {num_rows} rows | {microseconds(each)} |")
                else:
                    lines.append(f"| {shape} | {microseconds(seconds)} |")
        if section == "row":
            lines += ["", "µs between two calls in a row, of processor or GPU:", ""]
            lines += [
                f"- {shape}: {microseconds(measured['called_seconds'])}"
                for shape, measured in by_shape.items()
            ]
    lines += ["", "## Launch settings found", ""]
    lines += [f"- {key}: {value}" for key, value in record["tuned"].items()]
    return "\n".join(lines) + "\n"


def imported_peer():
    try:
        import bitsandbytes  # noqa: TID251
    except Exception as error:  # it may fail in many ways on a machine that it was not built for
        print(f"without bitsandbytes: {type(error).__name__}: {error}")
        return None
    return bitsandbytes


def main():
    parser = argparse.ArgumentParser(description="the 4-bit operators on a GPU")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--only", help=f"of checks, {', '.join(SECTIONS)}; with commas")
    parser.add_argument("--quick", action="store_true", help="one small shape, few rounds")
    parser.add_argument("--rounds", type=int, default=31)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing was checked and nothing measured", file=sys.stderr)
        return 2
    chosen = args.only.split(",") if args.only else ["checks", *SECTIONS]
    unknown = set(chosen) - {"checks", *SECTIONS}
    if unknown:
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    device = torch.device("cuda", 0)
    peer = imported_peer()
    args.out.mkdir(parents=True, exist_ok=True)
    record = {"machine": {}, "checks": [], "measured": {}, "tuned": {}}

    def save():
        record["machine"], record["tuned"] = machine(peer), tuned()
        (args.out / "nf4_gpu.json").write_text(json.dumps(record, indent=1))
        (args.out / "nf4_gpu.md").write_text(markdown(record))

    if "checks" in chosen:
        start = time.perf_counter()
        record["checks"] = checks(device)
        held = sum(holds for _, holds in record["checks"])
        seconds = time.perf_counter() - start
        print(f"checks: {held} of {len(record['checks'])} hold, {seconds:.0f} s", flush=True)
        save()
    clock = Clock(device, 5 if args.quick else args.rounds)
    for in_features, out_features in QUICK_SHAPES if args.quick else SHAPES:
        weight = Weight(in_features, out_features, device, peer)
        shape = f"{in_features}, {out_features}"
        for section, measure in SECTIONS.items():
            if section in chosen:
                measured = measure(clock, weight)
                record["measured"].setdefault(section, {})[shape] = measured
                if section in GOALS:
                    print(f"{section} {shape}: {goal_value(section, measured)}", flush=True)
                # After each: what a time limit cuts off is only what is not there yet.
                save()
        del weight
    save()
    print((args.out / "nf4_gpu.md").read_text())
    return 0 if all(holds for _, holds in record["checks"]) else 3


if __name__ == "__main__":
    sys.exit(main())
