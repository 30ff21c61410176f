"""Requests and tokens a minute, and requests at once: what a tenant's contract allows.

Buckets that fill at the rate of the contract and hold one minute of it. A prompt is paid when the
request is let in and an answer when it is finished, so a bucket may fall below empty: then the
tenant waits until the debt is paid. Nothing here waits; a refusal says when to ask again.

Used from the event loop alone, so there are no locks.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ince.serve.http.errors import ApiError
from ince.serve.http.tenants import Caller, Usage

__all__ = ["Limits", "Permit"]

_MINUTE = 60.0
# Tenants come and go; full buckets need not be remembered.
_MAX_REMEMBERED = 10_000


class _Bucket:
    """Level of one allowance."""

    def __init__(self, now: float, per_minute: int) -> None:
        self.level = float(per_minute)
        self._at = now

    def fill(self, now: float, per_minute: int) -> None:
        self.level = min(float(per_minute), self.level + (now - self._at) * per_minute / _MINUTE)
        self._at = now


@dataclass
class _Account:
    requests: _Bucket | None = None
    tokens: _Bucket | None = None
    running: int = 0


class Permit:
    """One request that was let in; `close` it once, when it is over."""

    def __init__(self, limits: "Limits", caller: Caller) -> None:
        self._limits = limits
        self.caller = caller
        self._adapter = ""
        self._open = True

    def begin(self, adapter: str | None) -> None:
        """Write down that the request is one of an adapter, by digest; None is the base."""
        self._adapter = adapter or ""
        self._limits.begin(self.caller, self._adapter)

    def pay(self, tokens: int) -> None:
        """Take the tokens of the prompts, or refuse.

        Raises:
            ApiError: 429, the minute's tokens are used up.
        """
        self._limits.pay(self.caller, tokens)

    def finished(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Write down what a sequence used; its answer is paid now."""
        self._limits.finished(self.caller, self._adapter, prompt_tokens, completion_tokens)

    def close(self) -> None:
        """The request is over."""
        if self._open:
            self._open = False
            self._limits.close(self.caller)


class Limits:
    """Every tenant's allowances and the book of what was used."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._accounts: OrderedDict[str, _Account] = OrderedDict()
        self._usage: dict[tuple[str, str], Usage] = {}

    def open(self, caller: Caller) -> Permit:
        """Let a request in.

        Raises:
            ApiError: 429, too many a minute or at once.
        """
        account = self._account(caller.tenant)
        most = caller.max_concurrent
        if most is not None and account.running >= most:
            raise _too_many(f"more than {most} requests at once", 1.0, "too_many_concurrent")
        if caller.requests_per_minute is not None:
            bucket = self._filled(account, "requests", caller.requests_per_minute)
            if bucket.level < 1:
                wait = (1 - bucket.level) * _MINUTE / max(1, caller.requests_per_minute)
                raise _too_many(
                    f"more than {caller.requests_per_minute} requests a minute",
                    wait,
                    "requests_per_minute",
                )
            bucket.level -= 1
        account.running += 1
        return Permit(self, caller)

    def pay(self, caller: Caller, tokens: int) -> None:
        """Take the tokens of prompts; see `Permit.pay`."""
        most = caller.tokens_per_minute
        if most is None:
            return
        if tokens > most:
            raise ApiError(
                429,
                f"The prompt has {tokens} tokens, and the key allows {most} a minute.",
                type="rate_limit_error",
                code="tokens_per_minute",
                headers={"Retry-After": "60", "x-should-retry": "false"},
            )
        bucket = self._filled(self._account(caller.tenant), "tokens", most)
        if bucket.level < tokens or bucket.level <= 0:
            wait = (max(1, tokens) - bucket.level) * _MINUTE / max(1, most)
            raise _too_many(f"more than {most} tokens a minute", wait, "tokens_per_minute")
        bucket.level -= tokens

    def begin(self, caller: Caller, adapter: str) -> None:
        """Write down a request; see `Permit.begin`."""
        self._of(caller.tenant, adapter).requests += 1

    def finished(
        self, caller: Caller, adapter: str, prompt_tokens: int, completion_tokens: int
    ) -> None:
        """Write down a sequence; see `Permit.finished`."""
        usage = self._of(caller.tenant, adapter)
        usage.prompt_tokens += prompt_tokens
        usage.completion_tokens += completion_tokens
        if caller.tokens_per_minute is not None:
            account = self._account(caller.tenant)
            self._filled(account, "tokens", caller.tokens_per_minute).level -= completion_tokens

    def close(self, caller: Caller) -> None:
        """A request is over; see `Permit.close`."""
        self._account(caller.tenant).running -= 1

    def take_usage(self) -> list[Usage]:
        """What was used since the last call."""
        taken, self._usage = self._usage, {}
        return list(taken.values())

    def put_back(self, used: Sequence[Usage]) -> None:
        """What could not be written down, for the next time."""
        for each in used:
            mine = self._of(each.tenant, each.adapter)
            mine.requests += each.requests
            mine.prompt_tokens += each.prompt_tokens
            mine.completion_tokens += each.completion_tokens

    def _of(self, tenant: str, adapter: str) -> Usage:
        return self._usage.setdefault((tenant, adapter), Usage(tenant, adapter))

    def _account(self, tenant: str) -> _Account:
        account = self._accounts.get(tenant)
        if account is None:
            account = self._accounts[tenant] = _Account()
            if len(self._accounts) > _MAX_REMEMBERED:
                self._forget_idle()
        self._accounts.move_to_end(tenant)
        return account

    def _forget_idle(self) -> None:
        for tenant in list(self._accounts)[: _MAX_REMEMBERED // 10]:
            if not self._accounts[tenant].running:
                del self._accounts[tenant]

    def _filled(self, account: _Account, which: str, per_minute: int) -> _Bucket:
        bucket: _Bucket | None = getattr(account, which)
        now = self._clock()
        if bucket is None:
            bucket = _Bucket(now, per_minute)
            setattr(account, which, bucket)
        bucket.fill(now, per_minute)
        return bucket


def _too_many(what: str, wait: float, code: str) -> ApiError:
    seconds = max(1, math.ceil(wait))
    return ApiError(
        429,
        f"This key has asked for {what}; ask again in {seconds} s.",
        type="rate_limit_error",
        code=code,
        headers={"Retry-After": str(seconds)},
    )
