"""What loading a 16-bit model to NF4 takes: memory above the finished model, and time.

    python benchmarks/load.py [--only load,cache] [--json FILE] [--quick]
    python benchmarks/load.py --shape llama-3-70b [--place DIR]

The first form draws a Llama of 1B parameters with random weights into 16-bit shards, and loads
it in processes of their own, ince and transformers with bitsandbytes in turns. The peak is of
the process's own memory (``RssAnon``), above where it was before loading:

    load    ince, without its cache, beside transformers with bitsandbytes
    cache   ince, writing its cache, and reading it

The second form is for models larger than the disk: `ince quantize` of a shape whose shards are
drawn when they are asked for and deleted when they were read. Its peak is told, and the size of
what was written is compared with the size that follows from the shape.
"""

import argparse
import importlib.metadata
import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

# hidden, intermediate, heads, key-value heads, layers, vocabulary, tied, finished bytes:
# codes, double-quantized scales, and embedding, head and norms in 16 bits.
SHAPES = {
    "tiny": (256, 512, 4, 2, 4, 8000, True, None),
    "llama-1b": (2048, 8192, 32, 8, 16, 128256, True, None),
    "llama-3-8b": (4096, 14336, 32, 8, 32, 128256, False, 5_702_295_552),
    "llama-3-70b": (8192, 28672, 64, 8, 80, 128256, False, 39_517_110_272),
}
SHARD_BYTES = {"tiny": 4_000_000, "llama-1b": 1_000_000_000}
MIB = 1 << 20
GOAL_BYTES = 256_000_000  # above the finished model and the largest tensor
SIZE_GOAL = 0.01
NOISE = 1 << 24  # numbers drawn; they are repeated


def config_of(shape):
    from transformers import LlamaConfig

    hidden, intermediate, heads, kv_heads, layers, vocab, tied, _ = SHAPES[shape]
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        num_hidden_layers=layers,
        vocab_size=vocab,
        tie_word_embeddings=tied,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )


def tensors_of(shape):
    """Name → shape, in the order of the files."""
    import torch
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(config_of(shape))
    tied = set(model.all_tied_weights_keys)
    return {n: tuple(t.shape) for n, t in model.state_dict().items() if n not in tied}


def shards_of(shape):
    """Lists of names, each of one file."""
    shards, left = [], 0
    for name, size in tensors_of(shape).items():
        num_bytes = 2 * math.prod(size)
        if num_bytes > left:
            shards.append([])
            left = SHARD_BYTES.get(shape, 5_000_000_000)
        shards[-1].append(name)
        left -= num_bytes
    return shards


class Noise:
    """Random 16-bit weights, as bytes, in constant memory."""

    def __init__(self):
        import torch

        generator = torch.Generator().manual_seed(0)
        self._noise = torch.empty(NOISE).normal_(std=0.02, generator=generator).bfloat16()
        self._scaled = torch.empty_like(self._noise)

    def write(self, stream, name, num_bytes):
        """As many bytes as asked for, of a spread that depends on the name."""
        import torch

        scale = 1.0 if "norm" in name else 0.5 + (sum(name.encode()) % 97) / 97
        torch.mul(self._noise, scale, out=self._scaled)
        data = self._scaled.view(torch.uint8).numpy().data
        while num_bytes:
            count = min(num_bytes, len(data))
            stream.write(data[:count])
            num_bytes -= count


def write_shard(path, names, sizes, noise):
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name in names:
        start, end = end, end + 2 * math.prod(sizes[name])
        header[name] = {
            "dtype": "BF16",
            "shape": list(sizes[name]),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            noise.write(stream, name, 2 * math.prod(sizes[name]))


def describe(shape, folder):
    """Config and a tokenizer, without weights."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    config_of(shape).save_pretrained(folder)
    inner = Tokenizer(models.BPE(vocab={"<s>": 0, "a": 1}, merges=[]))
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<s>").save_pretrained(folder)


def draw(shape, folder):
    """The model in 16-bit shards."""
    describe(shape, folder)
    sizes, noise, where = tensors_of(shape), Noise(), {}
    for number, names in enumerate(shards_of(shape)):
        file = f"model-{number:05d}.safetensors"
        write_shard(folder / file, names, sizes, noise)
        where |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


class DrawnSource:
    """A source of tensors whose shards are drawn when asked for, one at a time."""

    def __init__(self, shape, folder):
        from ince.models.source import Entry

        describe(shape, folder)
        self.folder = folder
        self._sizes = tensors_of(shape)
        self._shards = shards_of(shape)
        self._noise = Noise()
        self._number = None
        self._source = None
        self.entries = {
            name: Entry(size, "BF16", 2 * math.prod(size), folder / "drawn")
            for name, size in self._sizes.items()
        }
        self._shard_of = {n: i for i, names in enumerate(self._shards) for n in names}

    def order(self):
        return [name for names in self._shards for name in names]

    def read(self, name):
        return self._with(name).read(name)

    def runs(self, name, max_elements):
        return self._with(name).runs(name, max_elements)

    def _with(self, name):
        from ince.models.source import SafetensorsSource

        number = self._shard_of[name]
        if number != self._number:
            place = self.folder / "drawn"
            place.mkdir(exist_ok=True)
            file = place / "model.safetensors"
            file.unlink(missing_ok=True)
            write_shard(file, self._shards[number], self._sizes, self._noise)
            self._number, self._source = number, SafetensorsSource(place)
        return self._source


def own_memory():
    """Bytes of the process that are no file's."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(text.split("RssAnon:")[1].split()[0]) * 1024


def measured(call):
    """What a call returned, with its time and memory."""
    from ince.heap import give_back

    give_back()
    start = peak = own_memory()
    is_over = threading.Event()

    def watch():
        nonlocal peak
        while not is_over.wait(0.002):
            peak = max(peak, own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - began
    is_over.set()
    watcher.join()
    give_back()
    end = own_memory()
    return result, {
        "seconds": seconds,
        "peak_bytes": peak - start,
        "finished_bytes": end - start,
        "above_finished_bytes": peak - end,
    }


def worker(who, folder, shape, out):
    """One measurement, in a process of its own."""
    import torch

    if who == "bitsandbytes":
        import bitsandbytes  # noqa: F401, TID251
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        settings = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )

        def call(folder=folder):
            return AutoModelForCausalLM.from_pretrained(
                folder, quantization_config=settings, dtype=torch.bfloat16, device_map={"": "cpu"}
            )
    elif who == "quantize":
        import ince
        from ince.models.quantized_folder import write_quantized

        source = DrawnSource(shape, folder)

        def call(folder=folder):
            if folder != source.folder:
                return ince.load_model(folder, quantization=ince.NF4Config(), device="cpu")
            write_quantized(source, out, ince.NF4Config(), device="cpu", progress=told())
            return None
    else:
        import ince

        def call(folder=folder):
            return ince.load_model(
                folder, quantization=ince.NF4Config(), device="cpu", cache=who == "cache"
            )[0]

    with tempfile.TemporaryDirectory() as place:
        draw("tiny", Path(place))
        call(Path(place))  # what is imported on the way is not the load's
    model, figures = measured(call)
    if model is not None:
        # So that a load which only maps its files has to read them once.
        began = time.perf_counter()
        with torch.no_grad():
            model(torch.tensor([[1]]))
        figures["first_token_seconds"] = time.perf_counter() - began
    print(json.dumps(figures))


def told():
    """Progress on the terminal, a line for each percent."""
    last = [-1]

    def report(_stage, done, total):
        percent = 100 * done // total
        if percent > last[0]:
            last[0] = percent
            print(f"  {percent:3d}% of {total / 1e9:.1f} GB", end="\r", file=sys.stderr, flush=True)

    return report


def run(who, folder, shape="", out="", cache=None):
    command = [sys.executable, __file__, "--worker", who, str(folder), shape, str(out)]
    place = {} if cache is None else {"INCE_CACHE": str(cache)}
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=None if who == "quantize" else subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, **place},
    )
    if done.returncode:
        raise SystemExit(f"{who} failed\n{done.stderr or ''}")
    return json.loads(done.stdout.splitlines()[-1])


def middle(all_figures):
    return {key: statistics.median(f[key] for f in all_figures) for key in all_figures[0]}


def show(name, figures):
    token = figures.get("first_token_seconds")
    print(
        f"  {name:22s} {figures['seconds']:7.2f} s, "
        f"finished {figures['finished_bytes'] / MIB:7.0f} MiB, "
        f"above it at the peak {figures['above_finished_bytes'] / MIB:7.0f} MiB"
        + (f"; first token {token:.2f} s" if token is not None else "")
    )


def load(folder, largest, rounds):
    """Without a cache, in turns."""
    found = {"ince": [], "bitsandbytes": []}
    for _ in range(rounds):
        for who, figures in found.items():
            figures.append(run(who, folder))
    result = {who: middle(figures) for who, figures in found.items()}
    for who, figures in result.items():
        show(who, figures)
    above = max(figures["above_finished_bytes"] for figures in found["ince"])
    result["worst_above_finished_bytes"] = above
    report("MB above the finished model", above / 1e6, at_most=(largest + GOAL_BYTES) / 1e6)
    ratio = result["bitsandbytes"]["seconds"] / result["ince"]["seconds"]
    result["times_as_quick"] = ratio
    print(f"  ince is {ratio:.1f} times as quick")
    return result


def cache(folder, largest, rounds):
    """The load that writes the cache, and those that map it."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        first = run("cache", folder, cache=place)
        second = middle([run("cache", folder, cache=place) for _ in range(rounds)])
        files = list(Path(place).rglob("*.safetensors"))
        size = sum(file.stat().st_size for file in files)
    show("the first, which writes", first)
    show("the second", second)
    print(f"  {size / 1e9:.2f} GB in {len(files)} files")
    report(
        "MB above the finished model, writing",
        first["above_finished_bytes"] / 1e6,
        at_most=(largest + GOAL_BYTES) / 1e6,
    )
    return {"first": first, "second": second, "bytes": size}


def quantize(shape, place):
    """A model of which no more than a shard is ever on disk."""
    sizes = tensors_of(shape)
    largest = 2 * max(math.prod(size) for size in sizes.values())
    with tempfile.TemporaryDirectory(dir=place) as temporary:
        out = Path(temporary) / "out"
        figures = run("quantize", Path(temporary) / "source", shape, out)
        size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    expected = SHAPES[shape][-1]
    figures |= {"bytes": size, "expected_bytes": expected}
    print(f"  {size:,} bytes in {figures['seconds']:.0f} s, drawing included")
    if expected is not None:
        error = abs(size / expected - 1)
        report("difference to the computed size", error, at_most=SIZE_GOAL)
    report(
        "MB at the peak, no model being held",
        figures["peak_bytes"] / 1e6,
        at_most=(largest + GOAL_BYTES) / 1e6,
    )
    return figures


def report(what, value, *, at_most):
    reached = "reached" if value <= at_most else "missed"
    print(f"  {what}: {value:.4g}; goal: at most {at_most:.4g}, {reached}")


def machine():
    """What the figures were taken on, without the machine's name."""
    import torch

    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8").splitlines()
        model = next((t.split(":")[1].strip() for t in lines if t.startswith("model name")), model)
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": model,
        "isa": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "memory_gb": round(pages / 1e9, 1),
        "threads": torch.get_num_threads(),
    }


def versions():
    names = ("torch", "transformers", "bitsandbytes", "ince")
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in names
    }


SECTIONS = {"load": load, "cache": cache}


def main():
    if sys.argv[1:2] == ["--worker"]:
        who, folder, shape, out = sys.argv[2:]
        worker(who, Path(folder), shape, Path(out))
        return
    parser = argparse.ArgumentParser(description="loading a 16-bit model to NF4")
    parser.add_argument("--only", default="", help="sections, with commas between")
    parser.add_argument("--shape", choices=SHAPES, help="quantize this shape, drawn as it is read")
    parser.add_argument("--place", type=Path, help="folder for temporary files")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--quick", action="store_true", help="a tiny model: does it work?")
    parser.add_argument("--rounds", type=int, default=3, help="of loads, in turns")
    arguments = parser.parse_args()
    wanted = tuple(part for part in arguments.only.split(",") if part)
    chosen = {k: v for k, v in SECTIONS.items() if not wanted or k in wanted}
    if not chosen:
        parser.error(f"--only takes {', '.join(SECTIONS)}")
    figures = {
        "machine": machine(),
        "versions": versions(),
        "command": shlex.join(["python", *sys.argv]),
    }
    for what, value in figures.items():
        print(f"{what}: {value}")
    if arguments.shape:
        print(f"quantize {arguments.shape}:")
        figures[arguments.shape] = quantize(arguments.shape, arguments.place)
    else:
        shape = "tiny" if arguments.quick else "llama-1b"
        rounds = 1 if arguments.quick else arguments.rounds
        with tempfile.TemporaryDirectory(dir=arguments.place) as place:
            folder = Path(place) / "model"
            draw(shape, folder)
            sizes = [math.prod(size) for size in tensors_of(shape).values()]
            print(f"{sum(sizes):,} parameters, the largest tensor {2 * max(sizes) / 1e6:.0f} MB")
            for name, section in chosen.items():
                print(f"{name}:")
                figures[name] = section(folder, 2 * max(sizes), rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
