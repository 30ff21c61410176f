"""The application: routes over an engine, and what stands before them."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from ince.serve.http.chat import chat_routes
from ince.serve.http.completions import completion_routes
from ince.serve.http.directory import AdapterShelf, ModelDirectory
from ince.serve.http.errors import add_error_handlers
from ince.serve.http.generation import RequestEngine
from ince.serve.http.guard import Authenticated, Bounded, Observed, SameOrigin
from ince.serve.http.health import health_routes
from ince.serve.http.lora import lora_routes
from ince.serve.http.metrics import engine_collector
from ince.serve.http.models import model_routes
from ince.serve.http.page import PAGE_PATHS, page_routes
from ince.serve.http.service import AdapterLoader, Service
from ince.serve.http.settings import HttpSettings
from ince.serve.http.tenants import Tenants
from ince.serve.http.tokens import token_routes
from ince.serve.http.upload import upload_routes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["create_app", "service_of"]

_LOG = logging.getLogger(__name__)
# Between two looks at the tenants' weights, and two entries in their accounts.
_TENANT_SECONDS = 2.0
_NO_WEIGHTS = "tenants' weights could not be read; the old ones hold"
OPEN_PATHS = frozenset({"/health", "/ready", "/openapi.json"}) | PAGE_PATHS


def create_app(
    engine: RequestEngine,
    tokenizer: "PreTrainedTokenizerBase",
    directory: ModelDirectory,
    tenants: Tenants | None,
    settings: HttpSettings,
    *,
    shelf: AdapterShelf | None = None,
    loader: AdapterLoader | None = None,
    adapters_folder: Path | None = None,
    num_slots: int = 0,
) -> FastAPI:
    """Make the application.

    Args:
        engine: that runs requests; started and closed by the caller.
        tokenizer: of its base.
        directory: of the names that tenants may use.
        tenants: and their keys; None for a server without keys, which must only be reachable from
            its own machine.
        settings: bounds.
        shelf: takes changes to the directory; None where there are none.
        loader: of adapters, to load one before its name means it.
        adapters_folder: that adapters may be loaded from by path; None for none.
        num_slots: of adapters on the device, for the metrics.
    """
    service = Service(
        engine,
        tokenizer,
        directory,
        tenants,
        settings,
        shelf=shelf,
        loader=loader,
        adapters_folder=adapters_folder,
    )
    app = FastAPI(
        title="ince",
        description="One base, many adapters: OpenAI's routes, where `model` names the adapter.",
        version="1",
        docs_url=None,  # its page would ask another host for its scripts
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
    )
    app.state.service = service
    add_error_handlers(app)
    for routes in (
        chat_routes,
        completion_routes,
        model_routes,
        lora_routes,
        upload_routes,
        token_routes,
        health_routes,
    ):
        app.include_router(routes(service))
    app.include_router(page_routes())
    stats = getattr(engine, "stats", None)
    if stats is not None:
        collector = engine_collector(stats, names=directory.names_of, num_slots=num_slots)
        service.metrics.registry.register(collector)
    _secure(app)
    _guard(app, service)
    return app


def service_of(app: FastAPI) -> Service:
    """What is behind an application's routes."""
    service: Any = app.state.service
    assert isinstance(service, Service)
    return service


def _guard(app: FastAPI, service: Service) -> None:
    settings = service.settings
    # The last one added is the outermost.
    app.add_middleware(
        Bounded,
        max_bytes=settings.max_body_bytes,
        larger={"/v1/adapters/upload": settings.max_upload_bytes},
        stall_seconds=settings.stall_seconds,
    )
    app.add_middleware(Authenticated, tenants=service.tenants, open_paths=OPEN_PATHS)
    app.add_middleware(SameOrigin, hosts=settings.hosts)
    app.add_middleware(Observed, observe=service.metrics.observe)


def _secure(app: FastAPI) -> None:
    """Say in the OpenAPI document that routes want a key, and that no answer is a 422."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = make()
            schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
            schemes["key"] = {"type": "http", "scheme": "bearer"}
            for path, methods in document["paths"].items():
                for operation in methods.values():
                    operation["responses"].pop("422", None)
                    operation["security"] = [] if path in OPEN_PATHS else [{"key": []}]
            for unused in ("HTTPValidationError", "ValidationError"):
                document["components"].get("schemas", {}).pop(unused, None)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service = service_of(app)
    await _try_to(service.follow_weights, _NO_WEIGHTS)
    keeping = asyncio.create_task(_keep_tenants(service))
    try:
        yield
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await _try_to_write_usage(service)


async def _keep_tenants(service: Service) -> None:
    while True:
        await asyncio.sleep(_TENANT_SECONDS)
        await _try_to_write_usage(service)
        await _try_to(service.follow_weights, _NO_WEIGHTS)


async def _try_to_write_usage(service: Service) -> None:
    await _try_to(
        service.write_usage, "what tenants used could not be written down; it is kept in memory"
    )


async def _try_to(work: Callable[[], Awaitable[None]], failure: str) -> None:
    try:
        await work()
    except Exception:
        _LOG.exception(failure)
