"""What LoRA's operations cost, in ince and in PEFT, in one process and in turns.

    python benchmarks/lora_ops.py [--only mixed,load] [--json FILE] [--quick]

Sections, each with models of random weights in float32:

    create   `get_peft_model` on all linear layers of a model of 1B parameters without memory
    mixed-*  one token for each of 16 requests over 1, 4, 16 adapters, and by Zipf's law
    prompts  512 tokens for each of 16 requests, by Zipf's law
    load     `load_adapter` from a folder, 64 times
    swap     another adapter of the same size in an adapter's place

Times of a shared machine say little, ratios of times taken in turns say more: each forward is
divided by that of the base (the same weights, no adapter) timed just before it.
"""

import argparse
import copy
import functools
import gc
import importlib.metadata
import json
import os
import platform
import random
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path

import peft  # noqa: TID251
import torch
from peft.utils import hotswap as peft_hotswap  # noqa: TID251
from transformers import LlamaConfig, LlamaForCausalLM

import ince
from ince.lora import swap as ince_swap

LIBRARIES = {"ince": ince, "peft": peft}
# hidden, intermediate, heads, key-value heads, layers, vocabulary. Of the Llama shapes only the
# layers are of interest, so that their vocabulary is small.
SHAPES = {
    "1024": (1024, 2816, 16, 4, 8, 4096),
    "2048": (2048, 8192, 32, 8, 2, 4096),
    "135m": (576, 1536, 9, 3, 30, 49152),  # SmolLM2-135M
    "1b": (2048, 8192, 32, 8, 16, 128256),  # Llama 3.2 1B
    "tiny": (64, 96, 4, 2, 2, 64),
}
NUM_REQUESTS = 16
GOALS = {"mixed": 1.3, "load": 20.0, "growth": 1.1, "swap_ms": 1.0, "create_s": 1.0}


class Settings:
    """What the command line chose."""

    def __init__(self, *, quick, rounds):
        self.quick = quick
        self.rounds = 2 if quick else rounds

    def few(self, count):
        """`count`, or few when only the workings are shown."""
        return min(count, 3) if self.quick else count

    def model(self, shape, *, layers=None, device="cpu"):
        """A Llama of random weights."""
        hidden, intermediate, heads, kv_heads, num_layers, vocab = SHAPES[
            "tiny" if self.quick else shape
        ]
        config = LlamaConfig(
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            num_hidden_layers=layers or num_layers,
            vocab_size=vocab,
            tie_word_embeddings=shape in ("135m", "1b"),
        )
        torch.manual_seed(0)
        with torch.device(device):
            return LlamaForCausalLM(config).eval().requires_grad_(False)


def shared_copy(model):
    """A model of its own that holds the weights of another, so that memory tells none apart."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})


def lora_config(library, r):
    return library.LoraConfig(
        r=r, lora_alpha=r, target_modules="all-linear", inference_mode=True, task_type="CAUSAL_LM"
    )


def adapted(library, model, names, r):
    """`model` with adapters on all linear layers, the same in both libraries."""
    shell = library.get_peft_model(shared_copy(model), lora_config(library, r), names[0])
    for name in names[1:]:
        shell.add_adapter(name, lora_config(library, r))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in sorted(shell.named_parameters()):
        if "lora_" in name:
            parameter.requires_grad_(False).normal_(std=0.02, generator=generator)
    return shell.eval()


def timed(call):
    """Seconds."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def low(values):
    """The 5th percentile."""
    return sorted(values)[len(values) // 20]


def ratios(base, calls, rounds):
    """Time each call against the base, in turns.

    Each is made as many times as `calls` says. Of a mixed batch the first step is that of a new
    set of adapters, and the next that of a set already known, as in decoding.
    """
    for call, _ in ((base, 1), *calls.values()):
        call()
    times = {name: ([], [], []) for name in calls}  # base, first step, next step
    for _ in range(rounds):
        for name, (call, steps) in calls.items():
            for values, each in zip(times[name], (base, *[call] * steps), strict=False):
                values.append(timed(each))
    found = {}
    for name, (bases, first, after) in times.items():
        steady = after or first
        found[name] = {
            "ratio": statistics.median(map(lambda t, b: t / b, steady, bases)),
            "ratio_p5": low(steady) / low(bases),
            "ms": statistics.median(steady) * 1e3,
        }
        if after:
            new = statistics.median(map(lambda t, b: t / b, first, bases))
            found[name] |= {"new_set_ratio": new, "new_set_p5": low(first) / low(bases)}
    bases = [value for values, _, _ in times.values() for value in values]
    return {"base_ms": statistics.median(bases) * 1e3, "calls": found}


def mixes(names):
    """Who asks for what: 16 requests, by the number of adapters."""
    draw = random.Random(0)
    weights = [1 / rank**1.2 for rank in range(1, len(names) + 1)]
    return {
        "1 adapter": [names[0]] * NUM_REQUESTS,
        "4 adapters": [names[i % 4] for i in range(NUM_REQUESTS)],
        "16 adapters": names,
        "zipf": draw.choices(names, weights, k=NUM_REQUESTS),
    }


def mixed(settings, shape, *, tokens=1, layers=None, only=None, rounds=None):
    """Forward passes of a whole model, each request with its adapter."""
    base = settings.model(shape, layers=layers)
    names = [f"a{i}" for i in range(NUM_REQUESTS)]
    shells = {key: adapted(library, base, names, 16) for key, library in LIBRARIES.items()}
    ids = torch.randint(base.config.vocab_size, (NUM_REQUESTS, tokens))

    def forward(model, mix=None):
        kwargs = {} if mix is None else {"adapter_names": mix}
        return model(ids, use_cache=False, logits_to_keep=1, **kwargs).logits

    chosen = {name: mix for name, mix in mixes(names).items() if only is None or name in only}
    calls, difference = {}, 0.0
    if only is None:
        calls = {f"{k}, one active": (functools.partial(forward, s), 1) for k, s in shells.items()}
    for name, mix in chosen.items():
        outputs = []
        for key, shell in shells.items():
            call = functools.partial(forward, shell, mix)
            # PEFT keeps nothing between calls, and neither does ince of prompts.
            calls[f"{key}, {name}"] = call, 2 if key == "ince" and tokens == 1 else 1
            outputs.append(call())
        difference = max(difference, (outputs[0] - outputs[1]).abs().max().item())
    result = ratios(functools.partial(forward, base), calls, rounds or settings.rounds)
    print(f"  base {result['base_ms']:.1f} ms; logits differ by at most {difference:.1g}")
    for name, each in result["calls"].items():
        new = f"; new set {each['new_set_ratio']:.2f}" if "new_set_ratio" in each else ""
        print(f"  {name:18s} {each['ratio']:5.2f} of the base (p5 {each['ratio_p5']:.2f}{new})")
    worst = max(result["calls"][f"ince, {name}"]["ratio"] for name in chosen)
    result |= {"worst": worst, "difference": difference, "tokens": tokens}
    result["layers"] = base.config.num_hidden_layers
    report("worst mix of ince", worst, at_most=GOALS["mixed"])
    return result


def prompts(settings):
    # One layer: the products are what is compared, and all layers are alike.
    return mixed(settings, "1024", tokens=settings.few(512), layers=1, only=("zipf",), rounds=3)


def saved_adapter(base, folder, r):
    """A folder with an adapter of 9 MB; its bytes."""
    adapted(ince, base, ["default"], r).save_pretrained(folder)
    return (folder / "adapter_model.safetensors").stat().st_size


def load(settings):
    """One folder under 64 names: what grows is the model, not the disk."""
    base = settings.model("1024", layers=settings.few(16))  # an adapter of 9 MB
    count = 8 if settings.quick else 64
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        size = saved_adapter(base, folder, 8)
        times = {key: [] for key in LIBRARIES}
        warm = settings.model("1024", layers=1)
        saved_adapter(warm, folder / "warm", 8)
        shells = {}
        for key, library in LIBRARIES.items():
            adapted(library, warm, ["default"], 8).load_adapter(str(folder / "warm"), "other")
            shells[key] = adapted(library, base, ["default"], 8)
        for number in range(count):
            for key, shell in shells.items():
                if not 4 <= number < count - 4:
                    gc.collect()  # or the garbage of one is collected in the time of the other
                load_one = functools.partial(shell.load_adapter, str(folder), f"a{number}")
                times[key].append(timed(load_one))
    result = {"bytes": size, "count": count}
    for key, values in times.items():
        first, last = statistics.median(values[:4]), statistics.median(values[-4:])
        result[key] = {
            "first_ms": values[0] * 1e3,
            "last_ms": values[-1] * 1e3,
            "first_four_ms": first * 1e3,
            "last_four_ms": last * 1e3,
            "growth": last / first,
        }
        print(
            f"  {key}: the 1st {values[0] * 1e3:.1f} ms, the last {values[-1] * 1e3:.1f} ms;"
            f" medians of four {first * 1e3:.1f} and {last * 1e3:.1f} ms, growth {last / first:.2f}"
        )
    for which in ("first", "last"):
        ratio = result["peft"][f"{which}_ms"] / result["ince"][f"{which}_ms"]
        result[f"{which}_ratio"] = ratio
        report(f"times as quick as PEFT, the {which}", ratio, at_least=GOALS["load"])
    report("growth of ince", result["ince"]["growth"], at_most=GOALS["growth"])
    return result


def swap(settings):
    """Adapters of one size, two of them in turn."""
    base = settings.model("1024", layers=settings.few(16))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        size = saved_adapter(base, folder, 8)
        shells = {key: adapted(each, base, ["default"], 8) for key, each in LIBRARIES.items()}
        slots = ince_swap.AdapterSlots(shells["ince"], lora_config(ince, 8), 2)
        tensors = ince.get_peft_model_state_dict(shells["ince"])
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        # PEFT takes the names of its model here, and not those of its files.
        of_peft = {name.replace(".weight", ".default.weight"): t for name, t in tensors.items()}
        doubled = {name: 2 * tensor for name, tensor in tensors.items()}
        packed = [slots.pack(folder), slots.pack(doubled, lora_config(ince, 8))]
        turns = iter(range(10**9))

        def put():
            slots.put(packed[next(turns) % 2], "slot0")

        calls = {"ince, slot": put}
        for key, module, values in (
            ("ince", ince_swap, tensors),
            ("peft", peft_hotswap, of_peft),
        ):
            shell, config = shells[key], lora_config(LIBRARIES[key], 8)
            # A copy of the dictionary: PEFT takes out what it has used.
            calls[f"{key}, tensors"] = lambda s=shell, m=module, v=values, c=config: (
                m.hotswap_adapter_from_state_dict(s, dict(v), "default", c)
            )
            calls[f"{key}, folder"] = functools.partial(
                module.hotswap_adapter, shell, str(folder), "default"
            )
        times = {name: [] for name in calls}
        for call in calls.values():
            call()
        for _ in range(5 * settings.rounds):
            for name, call in calls.items():
                times[name].append(timed(call))
    result = {"bytes": size}
    for name, values in times.items():
        result[name] = {"ms": statistics.median(values) * 1e3, "ms_p5": low(values) * 1e3}
        print(f"  {name:14s} {result[name]['ms']:8.3f} ms (5th percentile {low(values) * 1e3:.3f})")
    report("ms of a swap in memory", result["ince, slot"]["ms"], at_most=GOALS["swap_ms"])
    return result


def create(settings):
    times = {key: [] for key in LIBRARIES}
    for _ in range(settings.few(5)):
        for key, library in LIBRARIES.items():
            model = settings.model("1b", device="meta")
            config = lora_config(library, 16)
            make = functools.partial(library.get_peft_model, model, config)
            times[key].append(timed(make))
    result = {"parameters": sum(p.numel() for p in model.parameters())}
    for key, values in times.items():
        result[key] = {"first_s": values[0], "median_s": statistics.median(values)}
        print(f"  {key}: the first {values[0]:.3f} s, median {statistics.median(values):.3f} s")
    result["ratio"] = result["peft"]["median_s"] / result["ince"]["median_s"]
    report("seconds of ince, the first", result["ince"]["first_s"], at_most=GOALS["create_s"])
    return result


def report(what, value, *, at_most=None, at_least=None):
    goal = f"at most {at_most}" if at_least is None else f"at least {at_least}"
    reached = value <= at_most if at_least is None else value >= at_least
    print(f"  {what}: {value:.3g}; goal: {goal}, {'reached' if reached else 'missed'}")


# `create` comes first: its first call is the process's.
SECTIONS = {
    "create": create,
    "mixed-1024": lambda settings: mixed(settings, "1024"),
    "mixed-2048": lambda settings: mixed(settings, "2048"),
    "mixed-135m": lambda settings: mixed(settings, "135m"),
    "prompts": prompts,
    "load": load,
    "swap": swap,
}


def machine():
    """What the figures were taken on, without the machine's name."""
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
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in ("torch", "transformers", *LIBRARIES)
    }


def main():
    parser = argparse.ArgumentParser(description="LoRA's operations, in ince and in PEFT")
    parser.add_argument("--only", default="", help="beginnings of sections, with commas between")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--quick", action="store_true", help="tiny models: does it work?")
    parser.add_argument("--rounds", type=int, default=9, help="of forwards, in turns")
    arguments = parser.parse_args()
    wanted = tuple(part for part in arguments.only.split(",") if part)
    chosen = {k: v for k, v in SECTIONS.items() if not wanted or k.startswith(wanted)}
    if not chosen:
        parser.error(f"--only takes {', '.join(SECTIONS)}")
    torch.set_grad_enabled(False)
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
