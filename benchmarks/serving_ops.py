"""What the operators of serving take on a CPU, beside PyTorch's, in one process and in turns.

    python benchmarks/serving_ops.py [--only calls,layers,dense,table,attention] [--json FILE]
        [--rounds 15] [--quick]

Sections:

    calls      what one call of `add_lora_segments_` takes where the layer is tiny
    layers     a step of 32 tokens through the adapters of all 210 linear layers of SmolLM2-135M,
               rank 16, over 1, 16 and 32 adapters; beside the time that reading their bytes takes
               (`torch.sum`)
    dense      those layers themselves, for steps of 1 to 128 rows; beside PyTorch's product
    table      a linear layer of 2048 times 2048 and 64 adapters of ranks 8, 16 and 32: a token for
               each of 32 requests, and 512 tokens by Zipf's law (1.2); beside a product for each
               segment (`addmm`), and the layer itself
    attention  float32, 9 query heads over 3 key heads of width 64: a token for each of 32 requests
               with 128 to 1024 keys, one request with 8192 keys, and a prompt of 512; beside
               `scaled_dot_product_attention` over padded keys

Other ways are divided by ince's time just before them: machines are shared, and ratios of times
taken in turns say more than times.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch
from torch.nn.functional import linear, scaled_dot_product_attention

from ince.ops import add_lora_segments_, cpu, dense_linear, paged_attention

HEADS, KEY_HEADS, WIDTH, PLACES = 9, 3, 64, 16
# inputs, outputs of the linear layers of a block of SmolLM2-135M, and how many blocks
LAYERS = [(576, 576), (576, 192), (576, 192), (576, 576), (576, 1536), (576, 1536), (1536, 576)]
NUM_BLOCKS, TOKENS, RANK = 30, 32, 16
FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def adapter(layers, rank, dtype, generator):
    """A flat tensor, and where A and B of each layer begin in it."""
    offsets, place = [], 0
    for num_in, num_out in layers:
        offsets.append((place, place + rank * num_in))
        place += rank * (num_in + num_out)
    return (torch.randn(place, generator=generator) * 0.01).to(dtype), offsets


def measure(ways, rounds):
    """Medians in µs of each way, and how many times that of the first it takes, in turns."""
    times = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append((time.perf_counter() - start) * 1e6)
    found = {}
    first = next(iter(ways))
    for name, values in times.items():
        ratios = sorted(a / b for a, b in zip(values, times[first], strict=True))
        found[name] = {
            "us": statistics.median(values),
            "ratio": statistics.median(ratios),
            "ratio_least": ratios[0],
            "ratio_most": ratios[-1],
        }
    return found


def calls(rounds, quick):
    """One row of four numbers for each of some adapters of rank 1."""
    figures = {}
    for count in (1, 32):
        blocks = [torch.randn(8) for _ in range(count)]
        layout = torch.tensor([(i, i, i + 1, 1, 0, 4, -1, -1) for i in range(count)])
        x, y = torch.randn(2, count, 4)

        def hundred(y=y, x=x, blocks=blocks, layout=layout):
            for _ in range(100):
                add_lora_segments_(y, x, blocks, layout)

        with torch.inference_mode():
            found = measure({"ince": hundred}, 3 if quick else 10 * rounds)["ince"]
        figures[f"{count} adapters"] = {"ince": found | {"us": found["us"] / 100}}
    return figures


def layers(rounds, quick):
    """All adapters' products of a step."""
    figures = {}
    shapes = LAYERS * (1 if quick else NUM_BLOCKS)
    for name, dtype in FORMATS.items():
        generator = torch.Generator().manual_seed(0)
        blocks = [adapter(shapes, RANK, dtype, generator)[0] for _ in range(TOKENS)]
        offsets = adapter(shapes, RANK, dtype, generator)[1]
        tensors = [
            (torch.randn(TOKENS, num_in, generator=generator), torch.zeros(TOKENS, num_out))
            for num_in, num_out in shapes
        ]
        for count in (1, 16, 32):
            used, rows = blocks[:count], TOKENS // count
            layouts = [
                torch.tensor(
                    [(i, i * rows, (i + 1) * rows, RANK, a, b, -1, -1) for i in range(count)]
                )
                for a, b in offsets
            ]

            def ince(used=used, layouts=layouts, tensors=tensors):
                for (x, y), layout in zip(tensors, layouts, strict=True):
                    add_lora_segments_(y, x, used, layout)

            def read(used=used):
                for block in used:
                    block.view(torch.float32).sum()

            def products(used=used, rows=rows, offsets=offsets, tensors=tensors):
                for (x, y), (a, b) in zip(tensors, offsets, strict=True):
                    num_in, num_out = x.shape[1], y.shape[1]
                    for i, block in enumerate(used):
                        part = slice(i * rows, (i + 1) * rows)
                        A = block[a : a + RANK * num_in].view(RANK, num_in)
                        B = block[b : b + RANK * num_out].view(RANK, num_out)
                        y[part].addmm_(x[part] @ A.T, B)

            ways = {"ince": ince, "reading the bytes": read}
            if dtype == torch.float32:
                ways["a product each"] = products
            with torch.inference_mode():
                figures[f"{name}, {count} adapters"] = measure(ways, rounds) | {
                    "bytes": sum(b.numel() * b.element_size() for b in used)
                }
    return figures


def dense(rounds, quick):
    """The linear layers themselves, for steps of few rows."""
    figures = {}
    shapes = LAYERS * (1 if quick else NUM_BLOCKS)
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(num_out, num_in, generator=generator) for num_in, num_out in shapes]
    cases = [(torch.float32, rows) for rows in (1, 4, 8, 16, 32, 64, 128)]
    cases += [(torch.bfloat16, rows) for rows in (1, 8, 32)]
    for dtype, rows in cases:
        weights = [weight.to(dtype) for weight in weights]
        inputs = {num_in: torch.randn(rows, num_in).to(dtype) for num_in, _ in LAYERS}

        def ince(weights=weights, inputs=inputs):
            for weight in weights:
                dense_linear(inputs[weight.shape[1]], weight)

        def torch_linear(weights=weights, inputs=inputs):
            for weight in weights:
                linear(inputs[weight.shape[1]], weight)

        def read(weights=weights):
            for weight in weights:
                weight.view(torch.float32).sum()

        ways = {"ince": ince, "torch": torch_linear, "reading the bytes": read}
        with torch.inference_mode():
            figures[f"{str(dtype)[6:]}, {rows} rows"] = measure(ways, rounds) | {
                "flops": 2 * rows * sum(weight.numel() for weight in weights)
            }
    return figures


def table(rounds, quick):
    """A large layer and adapters of unequal ranks."""
    size, num_adapters = (64 if quick else 2048), 64
    figures = {}
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(size, size, generator=generator)
    ranks = [(8, 16, 32)[i % 3] for i in range(num_adapters)]
    zipf = torch.arange(1, num_adapters + 1, dtype=torch.float32) ** -1.2
    for name, dtype in FORMATS.items():
        adapters = [adapter([(size, size)], rank, dtype, generator) for rank in ranks]
        blocks = [block for block, _ in adapters]
        for case, num_tokens in (("decode", 32), ("prefill", 512)):
            weights = torch.ones(num_adapters) if case == "decode" else zipf
            drawn = weights.multinomial(num_tokens, replacement=True, generator=generator)
            layout, row = [], 0
            for index, count in enumerate(drawn.bincount(minlength=num_adapters).tolist()):
                if count:
                    a, b = adapters[index][1][0]
                    layout.append((index, row, row + count, ranks[index], a, b, -1, -1))
                    row += count
            rows = torch.tensor(layout)
            x = torch.randn(num_tokens, size, generator=generator)
            y = torch.zeros(num_tokens, size)

            def ince(y=y, x=x, blocks=blocks, rows=rows):
                add_lora_segments_(y, x, blocks, rows)

            def base(x=x):
                return x @ weight.T

            def products(y=y, x=x, blocks=blocks, layout=layout):
                for index, start, stop, rank, a, b, *_ in layout:
                    A = blocks[index][a : a + rank * size].view(rank, size)
                    B = blocks[index][b : b + rank * size].view(rank, size)
                    y[start:stop].addmm_(x[start:stop] @ A.T, B)

            ways = {"ince": ince, "the layer itself": base}
            if dtype == torch.float32:
                ways["a product each"] = products
            with torch.inference_mode():
                figures[f"{name}, {case}, {len(layout)} segments"] = measure(ways, 4 * rounds)
    return figures


def paged(lengths, counts):
    """Arguments of `paged_attention`, and the same keys and values padded."""
    generator = torch.Generator().manual_seed(0)
    used = [-(-length // PLACES) for length in lengths]
    order = torch.randperm(sum(used), generator=generator).int()
    pools = torch.randn(2, sum(used), PLACES, KEY_HEADS, WIDTH, generator=generator)
    tables = torch.zeros(len(lengths), max(used), dtype=torch.int32)
    padded = torch.zeros(2, len(lengths), max(lengths), KEY_HEADS, WIDTH)
    first = 0
    for row, (length, count) in enumerate(zip(lengths, used, strict=True)):
        tables[row, :count] = order[first : first + count]
        padded[:, row, :length] = pools[:, tables[row, :count].long()].flatten(1, 2)[:, :length]
        first += count
    q = torch.randn(sum(counts), HEADS, WIDTH, generator=generator)
    starts = torch.tensor([0, *counts]).cumsum(0).int()
    args = (q, *pools, tables, starts, torch.tensor(lengths, dtype=torch.int32), WIDTH**-0.5)
    return args, *padded.transpose(2, 3).contiguous()


def attention(rounds, quick):
    """A token each, a long context, and a prompt."""
    figures = {}
    many = [128 + i * 896 // 31 for i in range(32)]
    cases = {
        "32 requests, a token each": (many, [1] * 32),
        "one request of 8192": ([8192], [1]),
        "a prompt of 512": ([512], [512]),
        "the last 128 of 1024": ([1024], [128]),
    }
    if quick:
        cases = {"3 requests": ([40, 3, 17], [1, 1, 1])}
    for name, (lengths, counts) in cases.items():
        args, k, v = paged(lengths, counts)
        count = counts[0]
        key = torch.arange(max(lengths))
        position = torch.tensor(lengths)[:, None] - count + torch.arange(count)
        mask = (key <= position[..., None])[:, None]
        queries = args[0].view(len(lengths), count, HEADS, WIDTH).transpose(1, 2)

        def ince(args=args):
            return paged_attention(*args)

        def padded(queries=queries, k=k, v=v, mask=mask):
            return scaled_dot_product_attention(queries, k, v, mask, enable_gqa=True)

        def read(args=args):
            args[1].sum()
            args[2].sum()

        with torch.inference_mode():
            difference = ince() - padded().transpose(1, 2).flatten(0, 1)
            found = measure({"ince": ince, "padded": padded, "reading": read}, 4 * rounds)
        figures[name] = found | {"difference": float(difference.abs().max())}
    return figures


SECTIONS = {
    "calls": calls,
    "layers": layers,
    "dense": dense,
    "table": table,
    "attention": attention,
}


def processor():
    """Its model, without the machine's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main():
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description="the operators of serving, beside PyTorch's")
    parser.add_argument("--only", help="sections, with commas between")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it work?")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    chosen = arguments.only.split(",") if arguments.only else list(SECTIONS)
    if arguments.rounds < 1 or not set(chosen) <= set(SECTIONS):
        parser.error(f"--rounds from 1 on; --only of {', '.join(SECTIONS)}")
    figures = {
        "cpu": processor(),
        "ince_isa": cpu.use_instruction_set() or "none: plain PyTorch",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    print(figures)
    for section in chosen:
        figures[section] = SECTIONS[section](
            2 if arguments.quick else arguments.rounds, arguments.quick
        )
        for case, ways in figures[section].items():
            print(f"{section}: {case}")
            for way, each in ways.items():
                if not isinstance(each, dict):
                    print(f"  {way}: {each:.3g}")
                    continue
                print(
                    f"  {way:18s} {each['us']:9.1f} µs; of ince {each['ratio']:.2f}"
                    f" ({each['ratio_least']:.2f} to {each['ratio_most']:.2f})"
                )
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
