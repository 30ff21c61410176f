"""Who asks what: prompts, lengths and adapters of the requests, the same for every server."""

from dataclasses import dataclass, replace

import numpy as np

# Beginnings that several requests share, as a product's own instructions are.
NUM_SYSTEMS = 4
ZIPF = 1.1


@dataclass(frozen=True)
class Asked:
    """One request: tokens, how many more are wanted, and which adapter (None: the base)."""

    prompt: tuple
    num_new: int
    adapter: int | None


def make_requests(count, vocabulary, seed, *, shortest, longest, system, news):
    """`count` requests to the base; every second one begins with one of a few shared texts.

    Args:
        shortest, longest: tokens of a prompt. system: of the shared beginning.
        news: fewest and most tokens of an answer.
    """
    draw = np.random.default_rng(seed)
    systems = draw.integers(3, vocabulary, (NUM_SYSTEMS, system))
    requests = []
    for number in range(count):
        length = int(draw.integers(shortest, longest + 1))
        prompt = draw.integers(3, vocabulary, length)
        if number % 2:
            begin = min(system, length - 1)
            prompt[:begin] = systems[int(draw.integers(NUM_SYSTEMS))][:begin]
        num_new = int(draw.integers(news[0], news[1] + 1))
        requests.append(Asked(tuple(prompt.tolist()), num_new, None))
    return requests


def over(requests, adapters, seed):
    """The same requests over these adapters, by Zipf's law; none of them: the base."""
    if not adapters:
        return requests
    draw = np.random.default_rng(seed)
    chances = 1.0 / np.arange(1, len(adapters) + 1) ** ZIPF
    chosen = draw.choice(len(adapters), size=len(requests), p=chances / chances.sum())
    return [
        replace(request, adapter=adapters[int(number)])
        for request, number in zip(requests, chosen, strict=True)
    ]


def arrivals(count, rate, seed):
    """When each of `count` requests comes, in seconds: Poisson's, `rate` a second."""
    gaps = np.random.default_rng(seed).exponential(1.0 / rate, count)
    return (np.cumsum(gaps) - gaps[0]).tolist()
