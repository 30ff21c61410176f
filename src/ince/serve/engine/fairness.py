"""Whose turn it is: virtual token counters, one for each tenant.

A tenant's counter grows by the work it was given, divided by its weight; the one who had least
goes next. A tenant who comes back after a pause is lifted to the least of those who wait, so that
being away saves up no credit. Between any two tenants who both always wait, the work given differs
by a bound that does not grow with time.

Ten thousand tenants may wait, and each step asks who of them had least. Counters of those who wait
only grow, so a heap may hold them as they were: what stands at its top is put right when it is
looked at. Coming, going and a turn cost O(log tenants).

Source: Fairness in Serving Large Language Models, arXiv:2401.00588.
"""

import heapq
from collections.abc import Mapping

from ince.errors import InputError

__all__ = ["INPUT_WEIGHT", "OUTPUT_WEIGHT", "TenantCounters"]

INPUT_WEIGHT = 1.0
"""Work of a prompt's token that was computed; one found in the cache costs none."""

OUTPUT_WEIGHT = 2.0
"""Work of a generated token."""

_SWEEP_AT = 1024


class TenantCounters:
    """Counters of the tenants that wait, and of those that did.

    Args:
        weights: a tenant of weight 2 gets twice the work of one of weight 1, the default.
    """

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self._weights: Mapping[str, float] = {}
        self._spread = 1.0
        self.set_weights(weights or {})
        self._counters: dict[str, float] = {}
        self._waiting: set[str] = set()
        # Tenants that wait, or did, and their counters as they were, or less; each once.
        self._line: list[tuple[float, str]] = []
        self._lined_up: set[str] = set()
        self._away: set[str] = set()
        self._last_left = 0.0
        # What a counter that was swept out stood at, or less.
        self._floor = 0.0
        self._sweep_at = _SWEEP_AT

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Take other weights, from any thread: work given from now on counts by them.

        Raises:
            InputError: a weight is out of range; the old ones hold.
        """
        for tenant, weight in weights.items():
            if not 0 < weight < float("inf"):
                raise InputError(
                    "a tenant's weight is out of range",
                    where=tenant,
                    got=weight,
                    expected="above 0",
                )
        self._weights = dict(weights)
        self._spread = max(1.0, *weights.values()) / min(1.0, *weights.values()) if weights else 1.0

    def weight(self, tenant: str) -> float:
        """Of the tenant; 1 where none was set."""
        return self._weights.get(tenant, 1.0)

    def most_share(self, num_tenants: int) -> float:
        """At most this part of the whole is one's, of so many or more."""
        return self._spread / num_tenants

    def counter(self, tenant: str) -> float:
        """Work given so far by weight, lifts included."""
        return self._counters.get(tenant, self._floor)

    def arrives(self, tenant: str) -> None:
        """A request of the tenant begins to wait."""
        if tenant in self._waiting:
            return
        self._counters[tenant] = max(self.counter(tenant), self._least())
        self._waiting.add(tenant)
        self.line_up(tenant)

    def next(self) -> str | None:
        """The tenant who waits and had least; it stands in line no more until `line_up`."""
        if not self._settle():
            return None
        _, tenant = heapq.heappop(self._line)
        self._lined_up.discard(tenant)
        self._away.add(tenant)
        return tenant

    def line_up(self, tenant: str) -> None:
        """Let one that `next` gave have further turns, if it still waits."""
        self._away.discard(tenant)
        if tenant in self._waiting and tenant not in self._lined_up:
            self._lined_up.add(tenant)
            heapq.heappush(self._line, (self.counter(tenant), tenant))

    def leaves(self, tenant: str) -> None:
        """No request of the tenant waits any more."""
        if tenant in self._waiting:
            self._waiting.discard(tenant)
            self._last_left = self.counter(tenant)

    def charge(self, tenant: str, *, inputs: int = 0, outputs: int = 0) -> None:
        """Count work that the tenant was given."""
        work = INPUT_WEIGHT * inputs + OUTPUT_WEIGHT * outputs
        self._counters[tenant] = self.counter(tenant) + work / self.weight(tenant)
        if len(self._counters) > self._sweep_at:
            self._sweep()

    def _least(self) -> float:
        """What whoever comes now is lifted to."""
        found = [self.counter(tenant) for tenant in self._away & self._waiting]
        if self._settle():
            found.append(self._line[0][0])
        return min(found, default=self._last_left)

    def _settle(self) -> bool:
        """Put the front of the line right; whether anybody stands there."""
        line = self._line
        while line:
            then, tenant = line[0]
            if tenant not in self._waiting:
                heapq.heappop(line)
                self._lined_up.discard(tenant)
            elif then != (now := self.counter(tenant)):
                heapq.heapreplace(line, (now, tenant))
            else:
                return True
        return False

    def _sweep(self) -> None:
        # Whoever returns is lifted to this or more: the least of those who wait never falls.
        floor = self._least()
        self._counters = {
            tenant: count
            for tenant, count in self._counters.items()
            if tenant in self._waiting or count > floor
        }
        self._floor = floor
        self._sweep_at = 2 * len(self._counters) + _SWEEP_AT
