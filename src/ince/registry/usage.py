"""What tenants took: requests and tokens, by day and adapter."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from ince.errors import InputError
from ince.registry.database import Snapshot

__all__ = ["Usage", "count", "counted"]


@dataclass(frozen=True)
class Usage:
    """What a tenant took on a day (UTC) of an adapter, by digest; "" is the base."""

    tenant: str
    adapter: str
    prompt_tokens: int
    completion_tokens: int
    num_requests: int = 1
    day: str = ""
    """YYYY-MM-DD; today where it is empty."""

    def to_dict(self) -> dict[str, object]:
        """As a JSON-ready object."""
        return asdict(self)


def count(snapshot: Snapshot, used: Sequence[Usage]) -> None:
    """Add to what was counted.

    Raises:
        InputError: a count is negative.
    """
    today = datetime.now(UTC).date().isoformat()
    for each in used:
        if min(each.num_requests, each.prompt_tokens, each.completion_tokens) < 0:
            raise InputError("what was used cannot be negative", got=each)
        snapshot.run(
            "INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (tenant, day, adapter) DO UPDATE SET "
            "num_requests = num_requests + excluded.num_requests, "
            "prompt_tokens = prompt_tokens + excluded.prompt_tokens, "
            "completion_tokens = completion_tokens + excluded.completion_tokens",
            each.tenant,
            each.day or today,
            each.adapter,
            each.num_requests,
            each.prompt_tokens,
            each.completion_tokens,
        )


def counted(snapshot: Snapshot, tenant: str | None, since: str | None) -> list[Usage]:
    """What was counted, of a tenant or all, from a day on."""
    rows = snapshot.rows(
        "SELECT * FROM usage WHERE (? IS NULL OR tenant = ?) AND (? IS NULL OR day >= ?) "
        "ORDER BY tenant, day, adapter",
        tenant,
        tenant,
        since,
        since,
    )
    return [
        Usage(
            tenant=row.text("tenant"),
            adapter=row.text("adapter"),
            prompt_tokens=row.integer("prompt_tokens"),
            completion_tokens=row.integer("completion_tokens"),
            num_requests=row.integer("num_requests"),
            day=row.text("day"),
        )
        for row in rows
    ]
