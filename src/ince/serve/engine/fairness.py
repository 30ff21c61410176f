"""Whose turn it is: virtual token counters, one for each tenant.

A tenant's counter grows by the work it was given, divided by its weight; the one who had least
goes next. A tenant who comes back after a pause is lifted to the least of those who wait, so that
being away saves up no credit. Between any two tenants who both always wait, the work given differs
by a bound that does not grow with time.

Source: Fairness in Serving Large Language Models, arXiv:2401.00588.
"""

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
        self._weights = dict(weights or {})
        for tenant, weight in self._weights.items():
            if not 0 < weight < float("inf"):
                raise InputError(
                    "a tenant's weight is out of range",
                    where=tenant,
                    got=weight,
                    expected="above 0",
                )
        self._counters: dict[str, float] = {}
        self._waiting: set[str] = set()
        self._last_left = 0.0
        # What a counter that was swept out stood at, or less.
        self._floor = 0.0
        self._sweep_at = _SWEEP_AT

    def weight(self, tenant: str) -> float:
        """Of the tenant; 1 where none was set."""
        return self._weights.get(tenant, 1.0)

    def counter(self, tenant: str) -> float:
        """Work given so far by weight, lifts included."""
        return self._counters.get(tenant, self._floor)

    def arrives(self, tenant: str) -> None:
        """A request of the tenant begins to wait."""
        if tenant in self._waiting:
            return
        least = min((self._counters[t] for t in self._waiting), default=self._last_left)
        self._counters[tenant] = max(self.counter(tenant), least)
        self._waiting.add(tenant)

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

    def _sweep(self) -> None:
        # Whoever returns is lifted to this or more: the least of those who wait never falls.
        floor = min((self._counters[t] for t in self._waiting), default=self._last_left)
        self._counters = {
            tenant: count
            for tenant, count in self._counters.items()
            if tenant in self._waiting or count > floor
        }
        self._floor = floor
        self._sweep_at = 2 * len(self._counters) + _SWEEP_AT
