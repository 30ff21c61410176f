"""Optimizers whose state does not fit: full fine-tuning of SmolLM2-135M on a CPU, 1.08 GB of state.

    python benchmarks/optim.py [--only paged,8bit,disk] [--shares 100,25,10,0] [--rounds 3]
        [--rows 2x256] [--directory DIR] [--json FILE] [--quick]

    paged   `PagedAdamW` with 100%, 25%, 10% and 0% of its state in memory and the rest in a
            file, beside `torch.optim.AdamW`: peak memory of the process's own, time of a step
            (forward, backward, update), and how much of it waits for the file
    8bit    `AdamW8bit` beside that of bitsandbytes
    disk    an update with all state in the file by itself, beside as many bytes that plain
            system calls read and write in order, through the system's cache and past it

Each optimizer has a process of its own with its own copy of the model. They take turns, a step
each, so that a machine that is shared disturbs all alike; ratios are of medians of the rounds
after the first, in which state is made.
"""

import argparse
import json
import statistics
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

from optimizers.disk import sequential_copy_rate
from training.machine import machine, occasion, print_facts, versions
from training.turns import Gate, Worker, read_spec

BASE = "smollm2-135m-instruct"
SHARES = "100,25,10,0"  # percent of the state in memory
GROUPS = ("paged", "8bit", "disk")
TORCH, EIGHT, PEER = "torch AdamW", "ince 8-bit", "bitsandbytes 8-bit"
GOAL = 1.25  # time of a step at 10%, over that of torch's AdamW
PAGE_BYTES = {False: 4 << 20, True: 64 << 10}  # by --quick


def paged(percent):
    return f"{percent}% in memory"


class Lineup:
    """Starts workers and lets them take turns."""

    def __init__(self, place, spec):
        self._place, self._spec = place, spec

    def start(self, who, share=0.0):
        spec = self._spec | {"who": who, "share": share}
        folder = self._place / who.replace(" ", "-").replace("%", "")
        return Worker(Path(__file__), sys.executable, "steps", spec, folder)

    def measure(self, workers, rounds, go="step"):
        """Name → figures of each round but the first, by what a worker tells."""
        told = {who: [] for who in workers}
        for number in range(rounds + 1):
            for who, worker in workers.items():
                told[who].append(worker.ask(go=go))
            line = ", ".join(f"{who} {each[-1]['seconds']:.2f} s" for who, each in told.items())
            print(f"  round {number}: {line}", flush=True)
        return {who: _figures(each) for who, each in told.items()}


def _figures(told):
    """Of one worker; waiting is counted from its start, so rounds are differences."""
    rounds = told[1:]
    tiers = [each["tiers"] for each in told]
    figures = {
        "seconds": [each["seconds"] for each in rounds],
        "update_seconds": [each["update_seconds"] for each in rounds],
        "own_peak": rounds[-1]["memory"]["own_peak"],
        "peak": rounds[-1]["memory"]["peak"],
    }
    if tiers[-1] is not None:
        pairs = list(pairwise(tiers))
        figures["waited_seconds"] = [b["waited_seconds"] - a["waited_seconds"] for a, b in pairs]
        figures["moved_bytes"] = [b["moved_bytes"] - a["moved_bytes"] for a, b in pairs]
        figures |= {key: tiers[-1][key] for key in ("memory_bytes", "file_bytes")}
    return figures


def measure_paged(lineup, arguments):
    workers = {TORCH: lineup.start(TORCH)}
    for share in arguments.shares.split(","):
        workers[paged(share)] = lineup.start("paged " + paged(share), float(share) / 100)
    found = lineup.measure(workers, arguments.rounds)
    for worker in workers.values():
        worker.stop()
    return found


def measure_8bit(lineup, arguments):
    workers = {who: lineup.start(who) for who in (TORCH, EIGHT, PEER)}
    found = lineup.measure(workers, arguments.rounds)
    for worker in workers.values():
        worker.stop()
    return found


def measure_disk(lineup, arguments, directory, num_bytes, piece_bytes):
    """An update with all state in the file, and the disk by itself, in turns."""
    who = "paged " + paged(0) + ", updates alone"
    worker = lineup.start(who, 0.0)
    worker.ask(go="update")  # makes the state
    rates, copies = [], {"cached": [], "direct": []}
    before = worker.ask(go="update")
    for _ in range(arguments.rounds):
        for how, each in copies.items():
            copied = sequential_copy_rate(directory, num_bytes, piece_bytes, cached=how == "cached")
            each.append(copied)
        told = worker.ask(go="update")
        moved = told["tiers"]["moved_bytes"] - before["tiers"]["moved_bytes"]
        rates.append(moved / told["update_seconds"])
        before = told
        line = ", ".join(f"{how} copy {each[-1] / 1e6:.0f} MB/s" for how, each in copies.items())
        print(f"  update {rates[-1] / 1e6:.0f} MB/s, {line}", flush=True)
    worker.stop()
    named = {f"{how}_copy_bytes_per_second": each for how, each in copies.items()}
    return {"update_bytes_per_second": rates} | named


def run(arguments, place):
    rows, length = map(int, arguments.rows.split("x"))
    piece_bytes = PAGE_BYTES[arguments.quick]
    directory = arguments.directory or place
    spec = {
        "base": "tiny" if arguments.quick else BASE,
        "rows": rows,
        "length": length,
        "page_bytes": piece_bytes,
        "directory": str(directory),
    }
    lineup, found = Lineup(place, spec), {}
    wanted = arguments.only.split(",")
    if "paged" in wanted:
        found["paged"] = measure_paged(lineup, arguments)
    if "8bit" in wanted:
        found["8bit"] = measure_8bit(lineup, arguments)
    if "disk" in wanted:
        num_bytes = (4 << 20) if arguments.quick else 1_076_121_600
        found["disk"] = measure_disk(lineup, arguments, directory, num_bytes, piece_bytes)
    return found


def ratio(found, who, to, key="seconds"):
    return statistics.median(found[who][key]) / statistics.median(found[to][key])


def show(found):
    """The tables, for a person."""
    if "paged" in found:
        each = found["paged"]
        whole = each[TORCH]["own_peak"]
        print("paged: own peak, below torch's by, step over torch's, waiting for the file a step")
        for who, figures in each.items():
            waited = statistics.median(figures.get("waited_seconds", [0.0]))
            print(
                f"  {who:16s} {figures['own_peak'] / 1e9:6.2f} GB "
                f"{(whole - figures['own_peak']) / 1e9:6.2f} GB "
                f"{ratio(each, who, TORCH):6.3f} {waited:6.2f} s"
            )
        if paged(10) in each:
            print(f"  goal at 10%: at most {GOAL}, reached {ratio(each, paged(10), TORCH):.3f}")
    if "8bit" in found:
        each = found["8bit"]
        print("8 bits: own peak, update, update over bitsandbytes'")
        for who, figures in each.items():
            update = statistics.median(figures["update_seconds"])
            print(
                f"  {who:20s} {figures['own_peak'] / 1e9:6.2f} GB {update:6.3f} s "
                f"{ratio(each, who, PEER, 'update_seconds'):6.3f}"
            )
    if "disk" in found:
        rates = {name: statistics.median(values) for name, values in found["disk"].items()}
        update = rates.pop("update_bytes_per_second")
        print(f"disk: update {update / 1e6:.0f} MB/s")
        for name, copy in rates.items():
            how = name.partition("_")[0]
            print(f"  {how} copy {copy / 1e6:.0f} MB/s, update over it {update / copy:.3f}")


def worker(path):
    from optimizers.worker import Steps

    gate, spec = Gate(), read_spec(path)
    steps = Steps(spec["who"], spec)
    gate.serve(steps)
    steps.stop()


def main():
    parser = argparse.ArgumentParser(description="optimizers whose state does not fit")
    parser.add_argument("--only", default=",".join(GROUPS), help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--shares", default=SHARES, help="percent of the state in memory")
    parser.add_argument("--rounds", type=int, default=3, help="after the first")
    parser.add_argument("--rows", default="2x256", help="rows x tokens of a step")
    parser.add_argument("--directory", type=Path, help="on the disk that is measured")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--quick", action="store_true", help="a tiny model: does it work?")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker[1])
        return
    unknown = set(arguments.only.split(",")) - set(GROUPS)
    if unknown:
        parser.error(f"no such group: {', '.join(sorted(unknown))}")
    facts = {"machine": machine(), "versions": versions("torch", "transformers", "bitsandbytes")}
    print_facts(facts | occasion())
    with tempfile.TemporaryDirectory(dir=arguments.directory) as place:
        found = run(arguments, Path(place))
    show(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(facts | occasion() | found, indent=1), "utf-8")


if __name__ == "__main__":
    main()
