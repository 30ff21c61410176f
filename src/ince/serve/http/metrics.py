"""What Prometheus reads, in a registry of its own.

Labels are bounded: routes are those of the application, and tenants beyond a number share one
label, so that nobody can grow the server's memory by asking. The state of the engine is read when
somebody scrapes. `vllm:…` are the names that inference gateways look for.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

__all__ = ["HttpMetrics", "engine_collector"]

_MAX_TENANTS = 200
_OTHER = "other"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_REASONS = ("stop", "length", "cancelled", "deadline")


class HttpMetrics:
    """Counters of the routes, and the registry that they and the engine's are in."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._tenants: set[str] = set()
        in_here: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter(
            "ince_http_requests", "Answered requests.", ("method", "route", "status"), **in_here
        )
        self.seconds = Histogram(
            "ince_http_request_seconds",
            "From a request to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            **in_here,
        )
        self.first_token = Histogram(
            "ince_first_token_seconds",
            "From a request to its first token.",
            buckets=_SECONDS,
            **in_here,
        )
        self.inter_token = Histogram(
            "ince_inter_token_seconds",
            "Between two tokens of an answer.",
            buckets=_BETWEEN,
            **in_here,
        )
        self.prompt_tokens = Counter(
            "ince_prompt_tokens", "Tokens of prompts.", ("tenant",), **in_here
        )
        self.cached_tokens = Counter(
            "ince_cached_prompt_tokens", "Of them, found in the cache.", ("tenant",), **in_here
        )
        self.completion_tokens = Counter(
            "ince_completion_tokens", "Tokens of answers.", ("tenant",), **in_here
        )
        self.sequences = Counter("ince_sequences", "Ended answers.", ("reason",), **in_here)
        self.slow_readers = Counter(
            "ince_slow_readers", "Requests cancelled because nobody read.", **in_here
        )
        self.draining = Gauge("ince_draining", "1 while the server is stopping.", **in_here)

    def observe(self, method: str, route: str, status: int, seconds: float, tenant: str) -> None:  # noqa: ARG002
        """Count one answered request."""
        known = method if method in ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS") else _OTHER
        self.requests.labels(known, route, str(status or "left")).inc()
        self.seconds.labels(route).observe(seconds)

    def finished(
        self,
        tenant: str,
        reason: str,
        prompt_tokens: int,
        completion_tokens: int,
        cached_tokens: int,
    ) -> None:
        """Count one ended sequence."""
        label = self._label(tenant)
        self.prompt_tokens.labels(label).inc(prompt_tokens)
        self.cached_tokens.labels(label).inc(cached_tokens)
        self.completion_tokens.labels(label).inc(completion_tokens)
        self.sequences.labels(reason if reason in _REASONS else _OTHER).inc()

    def _label(self, tenant: str) -> str:
        if tenant in self._tenants:
            return tenant
        if len(self._tenants) >= _MAX_TENANTS:
            return _OTHER
        self._tenants.add(tenant)
        return tenant


def _gauge(name: str, help_: str, value: float) -> Metric:
    return GaugeMetricFamily(name, help_, value=float(value))


def _counter(name: str, help_: str, value: float) -> Metric:
    return CounterMetricFamily(name, help_, value=float(value))


class _EngineCollector(Collector):
    def __init__(
        self,
        stats: Callable[[], Any],
        names: Callable[[Iterable[str]], Iterable[str]],
        num_slots: int,
    ) -> None:
        self._stats = stats
        self._names = names
        self._num_slots = num_slots

    def describe(self) -> Iterable[Metric]:
        return ()  # the engine is asked when somebody scrapes, not before

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        yield _gauge("ince_running", "Sequences that run.", stats.running)
        yield _gauge("ince_waiting", "Sequences that wait.", stats.waiting)
        yield _gauge("ince_kv_blocks_used", "Blocks of the KV cache in use.", stats.kv_blocks_used)
        yield _gauge("ince_kv_blocks", "Blocks of the KV cache.", stats.kv_blocks_total)
        yield _counter("ince_prefix_hit_tokens", "Tokens not computed.", stats.prefix_hit_tokens)
        yield _counter("ince_preemptions", "Sequences put back to wait.", stats.preemptions)
        yield _counter("ince_engine_steps", "Steps of the engine.", stats.steps)
        yield _counter("ince_engine_tokens", "Tokens that went through it.", stats.tokens)
        yield _counter("ince_engine_step_seconds", "Time in its steps.", stats.step_seconds)
        yield from _tier_metrics(getattr(stats, "adapters", None))
        yield _gauge("vllm:num_requests_running", "Sequences that run.", stats.running)
        yield _gauge("vllm:num_requests_waiting", "Sequences that wait.", stats.waiting)
        share = stats.kv_blocks_used / max(1, stats.kv_blocks_total)
        yield _gauge("vllm:kv_cache_usage_perc", "Share of the KV cache in use, 0 to 1.", share)
        lora = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Adapters of running and waiting sequences.",
            labels=("max_lora", "running_lora_adapters", "waiting_lora_adapters"),
        )
        lora.add_metric(
            (
                str(self._num_slots),
                self._listed(stats.running_by_adapter),
                self._listed(stats.waiting_by_adapter),
            ),
            time.time(),
        )
        yield lora

    def _listed(self, by_adapter: Mapping[str | None, int]) -> str:
        digests = [digest for digest, count in by_adapter.items() if digest and count]
        return ",".join(sorted(self._names(digests)))


def _tier_metrics(tiers: Any) -> Iterator[Metric]:
    """Whatever numbers the tiers count, by their own names."""
    if tiers is None:
        return
    fields: Mapping[str, Any] = tiers if isinstance(tiers, Mapping) else vars(tiers)
    for name, value in fields.items():
        if isinstance(value, (int, float)):
            yield _gauge(f"ince_adapter_{name}", f"Of the adapters' tiers: {name}.", value)
        elif isinstance(value, Mapping):
            family = GaugeMetricFamily(
                f"ince_adapter_{name}", f"Of the adapters' tiers: {name}.", labels=("tier",)
            )
            for tier, amount in value.items():
                family.add_metric((str(tier),), float(amount))
            yield family


def engine_collector(
    stats: Callable[[], Any],
    *,
    names: Callable[[Iterable[str]], Iterable[str]],
    num_slots: int,
) -> Collector:
    """A collector of the engine's state.

    Args:
        stats: `Engine.stats`.
        names: digests of adapters to the names that they go by.
        num_slots: of the adapters on the device.
    """
    return _EngineCollector(stats, names, num_slots)
