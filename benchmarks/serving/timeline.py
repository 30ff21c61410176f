"""When the tokens of each request came, and what that is in figures."""

import time


class Timeline:
    """One request's times on `time.perf_counter`'s clock.

    Attributes:
        asked: when it was sent.
        tokens: that came, with `times` beside them.
        ended: when it was complete; None before.
        error: why it failed.
    """

    __slots__ = ("asked", "cached", "ended", "error", "times", "tokens")

    def __init__(self, asked=None):
        self.asked = time.perf_counter() if asked is None else asked
        self.times, self.tokens = [], []
        self.ended = self.error = None
        self.cached = 0

    def token(self, token):
        self.times.append(time.perf_counter())
        self.tokens.append(token)

    @property
    def first_seconds(self):
        return self.times[0] - self.asked

    @property
    def gaps(self):
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


def quantile(values, share):
    """The nearest of `values` from above; nan of none."""
    ordered = sorted(values)
    if not ordered:
        return float("nan")
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def summary(lines):
    """Requests and tokens in a second, and when tokens come, of one run."""
    failed = [line for line in lines if line.error is not None]
    if failed:
        raise SystemExit(f"{len(failed)} of {len(lines)} requests failed: {failed[0].error}")
    begun, ended = min(line.asked for line in lines), max(line.ended for line in lines)
    seconds = ended - begun
    tokens = sum(len(line.tokens) for line in lines)
    firsts = [line.first_seconds for line in lines]
    gaps = [gap for line in lines for gap in line.gaps]
    return {
        "requests": len(lines),
        "seconds": seconds,
        "requests_per_second": len(lines) / seconds,
        "tokens_per_second": tokens / seconds,
        "first_token_p50": quantile(firsts, 0.5),
        "first_token_p99": quantile(firsts, 0.99),
        "between_p50": quantile(gaps, 0.5),
        "between_p99": quantile(gaps, 0.99),
        "cached_tokens": sum(line.cached for line in lines),
    }


def say(name, found):
    """A line for a person."""
    print(
        f"  {name}: {found['requests_per_second']:.2f} requests/s, "
        f"{found['tokens_per_second']:.1f} tokens/s; first token p50 "
        f"{found['first_token_p50']:.2f} s, p99 {found['first_token_p99']:.2f} s; then every "
        f"{1000 * found['between_p50']:.0f} ms, p99 {1000 * found['between_p99']:.0f} ms",
        flush=True,
    )
