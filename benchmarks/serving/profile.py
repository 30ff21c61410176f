"""Where the time of steps goes: samples of the engine's thread while it works."""

import collections
import sys
import threading

from serving.bench import spread
from serving.timeline import say, summary

# (part, functions in whose stack it is found), the first that fits; innermost frames come last.
PARTS = (
    ("scheduler", ("plan",)),
    ("adapters, tables", ("use",)),
    ("adapters, products", ("add_lora_segments_",)),
    ("attention", ("paged_attention_forward",)),
    ("choosing tokens", ("choose",)),
    ("text of tokens", ("take",)),
    ("output layer", ("_lm_head",)),
)
EVERY = 0.002


class Sampler:
    """Looks at a thread every two milliseconds."""

    def __init__(self, name):
        self.lines, self.parts = collections.Counter(), collections.Counter()
        self._name = name
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        ident = next(each.ident for each in threading.enumerate() if each.name == self._name)
        while not self._stop.wait(EVERY):
            frame = sys._current_frames().get(ident)
            if frame is None:
                return
            code = frame.f_code
            path = "/".join(code.co_filename.split("/")[-2:])
            self.lines[f"{path}:{code.co_name}:{frame.f_lineno}"] += 1
            names = set()
            while frame is not None:
                names.add(frame.f_code.co_name)
                frame = frame.f_back
            if "step" in names:
                self.parts[next((p for p, of in PARTS if names & set(of)), "the base")] += 1
            else:
                self.parts["idle"] += 1

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


def profile(bench):
    """Requests over many adapters, all at once, and where the engine's thread is meanwhile."""
    numbers = bench.numbers(4 if bench.quick else 64)
    folders, digests = bench.adapters(numbers)
    requests = spread(bench.requests(), numbers)
    with bench.ours(folders, digests) as ours:
        ours.warm({digests[each.adapter] for each in requests})
        ours.run(requests[:4], digests, salt="warm")
        with Sampler("ince-engine") as sampler:
            told = summary(ours.run(requests, digests, salt="profile"))
    say("sampled", told)
    total = sum(sampler.parts.values())
    for part, count in sampler.parts.most_common():
        print(f"  {count / total:6.1%} {part}")
    for line, count in sampler.lines.most_common(25):
        print(f"    {count / total:6.1%} {line}")
    return {
        "summary": told,
        "parts": {part: count / total for part, count in sampler.parts.items()},
        "lines": {line: count / total for line, count in sampler.lines.most_common(25)},
    }
