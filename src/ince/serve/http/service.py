"""What the routes share, and the steps that each request takes with it."""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from starlette.requests import Request

from ince.errors import InceError
from ince.serve.engine.request import GenerationRequest
from ince.serve.http.directory import AdapterShelf, ModelDirectory, NamedAdapter
from ince.serve.http.errors import ApiError, unknown_model
from ince.serve.http.generation import Generation, RequestEngine
from ince.serve.http.limits import Limits, Permit
from ince.serve.http.metrics import HttpMetrics
from ince.serve.http.options import Grammars
from ince.serve.http.prompts import Prompts
from ince.serve.http.settings import HttpSettings
from ince.serve.http.tenants import Caller, Tenants
from ince.serve.http.token_text import TokenTexts
from ince.serve.sampling import SamplingOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["AdapterLoader", "Service", "caller_of"]

_POLL_SECONDS = 0.01


class AdapterLoader(Protocol):
    """What the routes need of `ince.serve.adapters.AdapterTiers`."""

    def prefetch(self, digest: str) -> None:
        """Begin to load."""
        ...

    def state(self, digest: str) -> str:
        """``device``, ``memory``, ``loading``, ``disk`` or ``failed``."""
        ...

    def error(self, digest: str) -> InceError | None:
        """Why it failed."""
        ...

    def forget(self, digest: str) -> None:
        """Drop it where nobody uses it."""
        ...


@dataclass
class Service:
    """Everything behind the routes."""

    engine: RequestEngine
    tokenizer: "PreTrainedTokenizerBase"
    directory: ModelDirectory
    tenants: Tenants | None
    settings: HttpSettings
    shelf: AdapterShelf | None = None
    loader: AdapterLoader | None = None
    adapters_folder: Path | None = None
    metrics: HttpMetrics = field(default_factory=HttpMetrics)
    limits: Limits = field(default_factory=Limits)
    is_draining: bool = False
    started: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.prompts = Prompts(self.tokenizer, self.settings.context_length)
        self.token_texts = TokenTexts(self.tokenizer)
        num_tokens = self.settings.num_tokens or len(self.tokenizer)
        self.grammars = Grammars(self.tokenizer, num_tokens)
        self._weights: dict[str, float] = {}

    def resolve(self, caller: Caller, model: str) -> str | None:
        """The digest that a name means now; None for the base.

        Raises:
            ApiError: 404, also for what is another's.
        """
        if model == self.settings.base_name:
            if not self.directory.may_use_base(caller.tenant):
                raise unknown_model(model)
            return None
        return self.adapter(caller, model).digest

    def adapter(self, caller: Caller, name: str) -> NamedAdapter:
        """The adapter that a name means now.

        Raises:
            ApiError: 404, also for what is another's.
        """
        found = self.directory.adapters(caller.tenant).get(name)
        if found is None:
            raise unknown_model(name)
        return found

    def deadline(self, request: Request) -> float:
        """When the request is to be ended, on the monotonic clock.

        Raises:
            ApiError: the header is no number of seconds.
        """
        allowed = self.settings.timeout_seconds
        asked = request.headers.get("x-request-timeout")
        if asked is not None:
            try:
                seconds = float(asked)
            except ValueError:
                seconds = math.nan
            if not seconds > 0:
                raise ApiError(
                    400,
                    "X-Request-Timeout: a number of seconds is more than 0.",
                    param="X-Request-Timeout",
                    code="invalid_value",
                )
            allowed = min(allowed, seconds)
        return time.monotonic() + allowed

    def generate(
        self,
        request: Request,
        permit: Permit,
        prompts: Sequence[Sequence[int]],
        options: Sequence[SamplingOptions],
        *,
        adapter: str | None,
        deadline: float,
        cache_salt: str,
        streams: bool,
    ) -> Generation:
        """Give a request's sequences to the engine: each prompt with each of its options.

        Raises:
            ApiError: 429, the tenant has used up its tokens.
            QueueFullError, DrainingError, InputError: the engine does not take them.
        """
        permit.pay(sum(len(prompt) for prompt in prompts))
        request_id = request.state.request_id
        most = max(option.max_tokens for option in options)
        return Generation(
            self.engine,
            [
                GenerationRequest(
                    request_id=f"{request_id}-{index}",
                    prompt=tuple(prompts[index // (len(options) // len(prompts))]),
                    options=option,
                    adapter=adapter,
                    tenant=permit.caller.tenant,
                    deadline=deadline,
                    cache_salt=cache_salt,
                )
                for index, option in enumerate(options)
            ],
            permit=permit,
            metrics=self.metrics,
            # Whoever does not stream takes everything at the end.
            max_waiting=self.settings.stream_events
            if streams
            else (most + 4) * len(options) + self.settings.stream_events,
        )

    def admin(self, request: Request) -> Caller:
        """The caller, who must be an administrator.

        Raises:
            ApiError: 403.
        """
        caller = caller_of(request)
        if not caller.is_admin:
            raise ApiError(403, "This key is not an administrator's.", code="not_admin")
        return caller

    async def load(self, digest: str) -> None:
        """Load an adapter before anybody needs it, so that what is wrong with it is said now.

        Raises:
            InceError: it cannot be loaded.
            ApiError: 503, it is still loading.
        """
        if self.loader is None:
            return
        if self.loader.state(digest) == "failed":
            self.loader.forget(digest)
        self.loader.prefetch(digest)
        until = time.monotonic() + self.settings.load_seconds
        while (state := self.loader.state(digest)) not in ("device", "memory"):
            if state == "failed":
                raise self.loader.error(digest) or InceError("the adapter cannot be loaded")
            if time.monotonic() > until:
                raise ApiError(
                    503,
                    "The adapter is still loading.",
                    type="server_error",
                    code="loading",
                    headers={"Retry-After": "10"},
                )
            if state == "disk":
                self.loader.prefetch(digest)  # evicted again before we looked
            await asyncio.sleep(_POLL_SECONDS)

    async def follow_weights(self) -> None:
        """Let the engine know when tenants' weights have changed."""
        if self.tenants is None:
            return
        weights = dict(await asyncio.to_thread(self.tenants.weights))
        if weights != self._weights:
            self.engine.set_tenant_weights(weights)
            self._weights = weights

    async def write_usage(self) -> None:
        """Write down what tenants used since the last time."""
        taken = self.limits.take_usage()
        if self.tenants is None or not taken:
            return
        try:
            await asyncio.to_thread(self.tenants.record_usage, taken)
        except Exception:
            self.limits.put_back(taken)
            raise


def caller_of(request: Request) -> Caller:
    """Who asks."""
    caller: Any = request.state.caller
    assert isinstance(caller, Caller)
    return caller
