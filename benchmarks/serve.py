"""Serving many adapters on a CPU: ince beside PEFT, transformers and llama.cpp.

    python benchmarks/serve.py [--only adapters,load,...] [--place FOLDER] [--json FILE]
        [--llama-server PATH] [--rounds 2] [--requests 32] [--quick]

SmolLM2-135M-Instruct in float32, adapters of random weights: r=8 and r=16, on all linear layers or
on attention's, every eighth rsLoRA, every sixteenth DoRA. Requests have prompts of 64 to 256
tokens, every second one (but in `adapters`) with one of four beginnings of 64. They ask for 32 to
64 tokens (`--answers`), the likeliest ones, whatever they are, and choose among adapters by Zipf's
law (1.1).

    adapters      the same requests, all at once, to the base and over 1, 16, 64 and 256 adapters;
                  their prompts share nothing, so that all have the same to compute
    beginnings    the same with beginnings, which are computed once for each adapter
    load          256 adapters, requests that come by themselves at shares of what it can do
    fairness      a tenant's first tokens: alone, beside one that uses its share, beside a flood
    registry      a registry of 1,000 adapters with 32 slots, and smaller sets of them
    swap          an adapter in memory into a slot, and the tables of a step
    peft          16 adapters (without DoRA, which PEFT does not mix), beside PEFT's
                  `generate(adapter_names=...)` in static batches, sorted in three ways
    transformers  the base, beside transformers' continuous batching in process
    llama.cpp     one adapter, beside llama.cpp's server in float32: `--llama-server PATH`, beside
                  whose build its converters are looked for, or the wheel `xllamacpp` where that is
                  installed and `--llama-sources FOLDER` has the converters; left out without both
    http          the same requests through ince's own server, clients in another process
    profile       where the time of a step goes, by samples of the engine's thread

ince is measured through `Engine.submit`, in one process with the peers and in turns with them.
`--place` keeps adapters and converted files for the next run: 256 of them take 2.6 GB, and the
1,000 of the registry 2 GB.
"""

import argparse
import contextlib
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

from serving.against import against_llama_cpp, against_peft, against_transformers
from serving.bench import Bench
from serving.by_http import through_http
from serving.profile import profile
from serving.sections import beginnings, fairness, mixed_load, over_adapters, registry, swap
from training.machine import machine, occasion, print_facts, versions

SECTIONS = {
    "adapters": over_adapters,
    "beginnings": beginnings,
    "load": mixed_load,
    "fairness": fairness,
    "registry": registry,
    "swap": swap,
    "peft": against_peft,
    "transformers": against_transformers,
    "llama.cpp": against_llama_cpp,
    "http": through_http,
    "profile": profile,
}
PACKAGES = ("ince", "torch", "transformers", "peft")


def parsed():
    parser = argparse.ArgumentParser(description="serving many adapters on a CPU, beside others")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, with a comma between")
    parser.add_argument("--place", type=Path, help="folder that is kept")
    parser.add_argument("--json", type=Path, help="where all figures go")
    parser.add_argument("--rounds", type=int, default=2, help="of each variant, in turns")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--answers", default="32,64", help="fewest and most tokens of an answer")
    parser.add_argument("--running", type=int, default=32, help="requests at once")
    parser.add_argument(
        "--batch-tokens", type=int, default=512, help="of a step; what the server takes"
    )
    parser.add_argument(
        "--counts", default="0,1,16,64,256", help="numbers of adapters; 0: the base"
    )
    parser.add_argument("--peft-batch", type=int, default=16, help="requests of PEFT's batches")
    parser.add_argument("--load", default="0.3,0.6", help="shares of what the engine can do")
    parser.add_argument("--samples", type=int, default=24, help="requests of the fair tenant")
    parser.add_argument("--rate", type=float, default=0.35, help="of the fair tenant, a second")
    parser.add_argument("--llama-server", type=Path)
    parser.add_argument("--llama-sources", type=Path, help="folder of llama.cpp's converters")
    parser.add_argument("--quick", action="store_true", help="a tiny model; shows that it runs")
    arguments = parser.parse_args()
    arguments.only = arguments.only.split(",")
    unknown = sorted(set(arguments.only) - set(SECTIONS))
    if unknown:
        parser.error(f"no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    arguments.counts = [int(count) for count in arguments.counts.split(",")]
    arguments.answers = tuple(int(count) for count in arguments.answers.split(","))
    arguments.load = [float(share) for share in arguments.load.split(",")]
    return arguments


def main():
    arguments = parsed()
    if arguments.quick:
        arguments.rounds, arguments.load, arguments.peft_batch = 1, [0.6], 4
    logging.getLogger("transformers").setLevel(logging.ERROR)
    record = occasion() | {"machine": machine(), "versions": versions(*PACKAGES)}
    print_facts(record)
    with contextlib.ExitStack() as inside:
        place = arguments.place or Path(inside.enter_context(tempfile.TemporaryDirectory()))
        place.mkdir(parents=True, exist_ok=True)
        bench = Bench(arguments, place)
        record["settings"] = {
            "max_running": bench.max_running,
            "max_batch_tokens": bench.max_batch_tokens,
            "requests": len(bench.requests()),
        }
        for name in arguments.only:
            print(f"{name}", flush=True)
            begun = time.perf_counter()
            record[name] = SECTIONS[name](bench)
            print(f"  ({time.perf_counter() - begun:.0f} s)", flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(record, indent=1), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
