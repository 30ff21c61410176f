"""What is measured of ince alone: adapters in numbers, latency, fairness, tiers, swaps."""

import contextlib
import statistics
import threading
import time

import torch

from ince.errors import DrainingError
from serving.bench import spread
from serving.drawn_adapters import SMALL, write_adapters
from serving.timeline import quantile, say, summary
from serving.workload import arrivals


def median_of(rounds, key):
    return statistics.median(found[key] for found in rounds)


def over_adapters(bench):
    """Over 0 (the base), 1, 16, 64 and 256 adapters; prompts share nothing: all compute alike."""
    return _over(bench, bench.requests(shares=False), bench.counts)


def beginnings(bench):
    """The same where every second prompt has a beginning that is found again under one adapter."""
    return _over(bench, bench.requests(), (0, 1, max(bench.counts)))


def _over(bench, requests, counts):
    """All requests at once, over so many adapters, in turns."""
    numbers = bench.numbers(max(counts))
    folders, digests = bench.adapters(numbers)
    found = {count: [] for count in counts}
    asked = {each.adapter for count in counts for each in spread(requests, numbers[:count])}
    asked.discard(None)
    with bench.ours(folders, digests) as ours:
        loading = ours.warm([digests[number] for number in asked])
        print(f"  {len(asked)} adapters read, checked and packed in {loading:.1f} s")
        ours.run(requests[: len(requests) // 4], digests, salt="warm")
        for number in range(bench.arguments.rounds):
            for count in counts:
                mine = spread(requests, numbers[:count])
                lines = ours.run(mine, digests, salt=f"{number} {count}")
                told = summary(lines) | {"adapters_asked": len({each.adapter for each in mine})}
                found[count].append(told)
                say(f"{count} adapters" if count else "base", told)
    ratios = {
        count: statistics.median(
            mine["tokens_per_second"] / one["tokens_per_second"]
            for mine, one in zip(found[count], found[1], strict=True)
        )
        for count in counts
    }
    print(f"  tokens/s, of one adapter's: {ratios}")
    return {
        "rounds": found,
        "of_one": ratios,
        "loaded": len(asked),
        "loading_seconds": loading,
    }


def mixed_load(bench):
    """Requests that come by themselves, at a share of what the engine can do."""
    count = max(bench.counts)
    numbers = bench.numbers(count)
    folders, digests = bench.adapters(numbers)
    requests = spread(bench.requests(seed=1), numbers)
    found = {}
    with bench.ours(folders, digests) as ours:
        ours.warm({digests[each.adapter] for each in requests})
        most = summary(ours.run(requests, digests, salt="most"))["requests_per_second"]
        for share in bench.arguments.load:
            times = arrivals(len(requests), share * most, seed=2)
            lines = ours.run(requests, digests, salt=str(share), times=times)
            told = summary(lines) | {"share": share}
            told["p99_over_p50"] = told["first_token_p99"] / told["first_token_p50"]
            found[str(share)] = told
            say(f"{share:.0%} of {most:.2f} requests/s", told)
            print(f"    first token: p99 is {told['p99_over_p50']:.2f} times p50")
    return {"most_requests_per_second": most, "shares": found}


class Busy:
    """A tenant that has `concurrency` requests at the engine all the time."""

    def __init__(self, ours, requests, digests, *, tenant, concurrency):
        self._left = threading.Semaphore(concurrency)
        self._stop = threading.Event()
        self._ended = 0
        self._ours = ours
        self._arguments = requests, digests, tenant
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        ours = self._ours
        requests, digests, tenant = self._arguments
        number = 0
        while True:
            self._left.acquire()
            if self._stop.is_set():
                return
            asked = requests[number % len(requests)]
            salt = f"{tenant} {number // len(requests)}"
            digest = digests[asked.adapter]
            try:
                ours.submit(
                    asked, digest=digest, salt=salt, tenant=tenant, on_end=self._left.release
                )
            except DrainingError:
                return
            number += 1

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._left.release()
        self._thread.join()
        # What it still has need not be answered.
        self._ours.engine.close()


def fairness(bench):
    """One tenant's first tokens: alone, beside a tenant that uses its share, and beside a flood."""
    numbers = bench.numbers(4 if bench.quick else 16)
    folders, digests = bench.adapters(numbers)
    few = 4 if bench.quick else bench.arguments.samples
    mine = spread(bench.requests(seed=3, count=few), numbers)
    others = spread(bench.requests(seed=4), numbers)
    share = bench.max_running // 2
    cases = {"alone": 0, "beside its share": share, "beside a flood": 8 * bench.max_running}
    rate = 50.0 if bench.quick else bench.arguments.rate
    found = {}
    for name, concurrency in cases.items():
        with bench.ours(folders, digests) as ours:
            ours.warm(digests.values())
            times = [2.0 / rate + each for each in arrivals(len(mine), rate, seed=5)]
            with contextlib.ExitStack() as beside:
                if concurrency:
                    beside.enter_context(
                        Busy(ours, others, digests, tenant="other", concurrency=concurrency)
                    )
                    time.sleep(0.1 if bench.quick else 8.0)
                lines = ours.run(mine, digests, salt=name, times=times, tenant="mine")
                found[name] = summary(lines) | {
                    "first_token_seconds": [line.first_seconds for line in lines],
                    "preemptions": ours.engine.stats().preemptions,
                }
            say(name, found[name])
    flooded = found["beside a flood"]
    for name in ("alone", "beside its share"):
        for key in ("first_token_p50", "first_token_p99"):
            ratio = flooded[key] / found[name][key]
            flooded[f"{key} over {name}"] = ratio
            print(f"  beside a flood, {key.replace('_', ' ')}: {ratio:.2f} times that {name}")
    return found


def registry(bench):
    """A registry of many adapters and few slots, beside as many adapters as there are slots."""
    from ince.registry import Registry

    total, slots = (24, 4) if bench.quick else (1000, 32)
    sets = (4, 24) if bench.quick else (32, 64, 256, 1000)
    dtype = torch.float32 if bench.quick else torch.bfloat16
    folders = write_adapters(
        bench.place / "small", bench.loaded[0], range(total), SMALL, dtype, plain=True
    )
    begun = time.perf_counter()
    with Registry(bench.place / "registry", create=True) as kept:
        digests = {number: kept.put(path) for number, path in folders.items()}
        putting = time.perf_counter() - begun
        print(f"  {total} adapters put in {putting:.1f} s")
        requests, found = bench.requests(seed=6), {}
        memory = 1 << 20 if bench.quick else 256 << 20
        for size in sets:
            mine = spread(requests, list(range(size)))
            options = {"num_slots": slots, "memory_bytes": memory}
            with bench.ours_of(kept, **options) as ours:
                begin = list({each.adapter for each in mine})[:slots]
                ours.warm([digests[number] for number in begin])
                lines = ours.run(mine, digests, salt=str(size))
                stats = ours.tiers.stats()
            told = summary(lines)
            told |= {
                "asked": len({each.adapter for each in mine}),
                "longest_wait": max(line.first_seconds for line in lines),
                "loads": stats.loads,
                "load_ms": 1000 * stats.load_seconds / max(1, stats.loads),
                "slot_evictions": stats.slot_evictions,
                "memory_evictions": stats.memory_evictions,
            }
            found[str(size)] = told
            say(f"{size} adapters, {told['asked']} of them asked", told)
            print(
                f"    {told['loads']} loads of {told['load_ms']:.1f} ms, "
                f"{told['slot_evictions']} slots given to another"
            )
    return {"slots": slots, "put_seconds": putting, "sets": found}


def swap(bench):
    """What it takes to put an adapter that is in memory into a slot that another has."""
    numbers = bench.numbers(4 if bench.quick else 16)
    folders, digests = bench.adapters(numbers)
    with bench.ours(folders, digests, num_slots=2) as ours:
        ours.warm(digests.values())
        times, order = [], list(digests.values())
        for number in range(20 * len(order)):
            digest = order[number % len(order)]
            begun = time.perf_counter()
            held = ours.tiers.acquire(digest)
            times.append(time.perf_counter() - begun)
            if held is None:
                raise SystemExit("an adapter in memory could not be had")
            ours.tiers.release(digest)
        first = _first_step(ours, order)
    found = {
        "acquire_ms": 1000 * statistics.median(times),
        "acquire_p99_ms": 1000 * quantile(times, 0.99),
        "largest_bytes": held.num_bytes,
    } | first
    print(f"  into a slot {found['acquire_ms']:.3f} ms (p99 {found['acquire_p99_ms']:.3f})")
    print(
        f"  tables of a step: {first['new_set_ms']:.3f} ms with {first['segments']} others, "
        f"{first['same_set_ms']:.3f} ms with those of the step before"
    )
    return found


def _first_step(ours, order):
    """The tables of a step: over adapters that the step before did not have, and over the same."""
    held = [ours.tiers.acquire(order[0]), ours.tiers.acquire(order[1])]
    new, same = [], []
    for number in range(100):
        pair = held if number % 2 else held[::-1]
        segments = [(adapter, row, row + 1) for row, adapter in enumerate(pair)]
        for times in (new, same):
            begun = time.perf_counter()
            with ours.tiers.use(segments, segments):
                times.append(time.perf_counter() - begun)
    return {
        "segments": len(held),
        "new_set_ms": 1000 * statistics.median(new),
        "same_set_ms": 1000 * statistics.median(same),
    }
