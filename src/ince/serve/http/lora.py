"""Adapters while the server runs: vLLM's load and unload, aliases and rollback; for administrators.

A new version is loaded beside the old one, checked there, and only then does the name change: what
runs stays with the old one, and a version that does not load has changed nothing.
"""

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, Field

from ince.errors import InputError
from ince.serve.http.directory import AdapterShelf, NamedAdapter, check_name, contained_folder
from ince.serve.http.errors import ApiError, error_responses
from ince.serve.http.service import Service
from ince.serve.http.strict import Strict, Text

__all__ = ["NamedVersion", "lora_routes", "publish"]

_Name = Text


class LoadRequest(Strict):
    """vLLM's, and whose the adapter is."""

    lora_name: _Name = Field(min_length=1, max_length=512)
    lora_path: Text = Field(min_length=1, max_length=4096)
    """A folder beneath the server's folder of adapters, relative to it."""
    load_inplace: bool = False
    """Let a name that means something mean this from now on."""
    base_model_name: Text | None = None
    tenant: Text = Field("", max_length=128)
    """Whose it is; empty for everybody's."""


class UnloadRequest(Strict):
    """vLLM's."""

    lora_name: _Name = Field(min_length=1, max_length=512)
    lora_int_id: int | None = None
    tenant: Text = Field("", max_length=128)


class AliasRequest(Strict):
    """A name, and the adapter that it is to mean."""

    name: _Name = Field(min_length=1, max_length=512)
    digest: str = Field(pattern="^[0-9a-f]{64}$")
    tenant: Text = Field("", max_length=128)


class RollbackRequest(Strict):
    """A name."""

    name: _Name = Field(min_length=1, max_length=512)
    tenant: Text = Field("", max_length=128)


class NamedVersion(BaseModel):
    """What a name means, or meant."""

    name: str
    digest: str
    created: int
    tenant: str


class History(BaseModel):
    """What a name has meant, newest first."""

    data: list[NamedVersion]


def shelf_of(service: Service) -> AdapterShelf:
    """Where adapters are put.

    Raises:
        ApiError: 400, the server serves its base alone.
    """
    if service.shelf is None:
        raise ApiError(
            400,
            "This server serves its base alone: start it with --adapters DIR or --registry DIR.",
            code="no_adapters",
        )
    return service.shelf


async def publish(
    service: Service, shelf: AdapterShelf, name: str, digest: str, *, tenant: str
) -> dict[str, Any]:
    """Load an adapter, and let a name mean it then.

    Raises:
        InceError: it does not load; the name means what it meant.
    """
    check_name(name)
    if name == service.settings.base_name:
        raise InputError("the name is the base's", got=name, do="give the adapter another one")
    await service.load(digest)
    await asyncio.to_thread(shelf.alias, name, digest, tenant=tenant)
    return await _current(shelf, name, tenant)


async def _current(shelf: AdapterShelf, name: str, tenant: str) -> dict[str, Any]:
    found = await asyncio.to_thread(shelf.current, name, tenant=tenant)
    if found is None:  # somebody took it away meanwhile
        raise InputError("no such adapter", got=name)
    return _version(found)


def _version(found: NamedAdapter) -> dict[str, Any]:
    return {
        "name": found.name,
        "digest": found.digest,
        "created": found.created,
        "tenant": found.tenant,
    }


def lora_routes(service: Service) -> APIRouter:
    """The routes, over `service`."""
    router = APIRouter(tags=["administration"])

    @router.post(
        "/v1/load_lora_adapter",
        response_class=PlainTextResponse,
        responses=error_responses(400, 401, 403, 413, 500, 503, 507),
    )
    async def load_lora_adapter(body: LoadRequest, request: Request) -> str:
        """Load an adapter of the server's folder, and give it a name."""
        shelf = shelf_of(service).acting(service.admin(request).tenant)
        check_name(body.lora_name)
        named = await asyncio.to_thread(shelf.current, body.lora_name, tenant=body.tenant)
        if named is not None and not body.load_inplace:
            raise ApiError(
                400,
                f"The lora adapter {body.lora_name!r} has already been loaded; "
                "load_inplace: true replaces it.",
                param="lora_name",
                code="already_loaded",
            )
        folder = await asyncio.to_thread(contained_folder, service.adapters_folder, body.lora_path)
        digest = await asyncio.to_thread(shelf.put, folder, tenant=body.tenant)
        await publish(service, shelf, body.lora_name, digest, tenant=body.tenant)
        return f"Success: LoRA adapter '{body.lora_name}' added successfully."

    @router.post(
        "/v1/unload_lora_adapter",
        response_class=PlainTextResponse,
        responses=error_responses(400, 401, 403, 404, 413),
    )
    async def unload_lora_adapter(body: UnloadRequest, request: Request) -> str:
        """Take a name away; what runs with the adapter ends as it began."""
        shelf = shelf_of(service).acting(service.admin(request).tenant)
        if await asyncio.to_thread(shelf.current, body.lora_name, tenant=body.tenant) is None:
            raise ApiError(
                404,
                f"The lora adapter {body.lora_name!r} cannot be found.",
                param="lora_name",
                code="model_not_found",
            )
        digest = await asyncio.to_thread(shelf.remove, body.lora_name, tenant=body.tenant)
        if service.loader is not None and service.directory.names_of([digest]) == [digest]:
            service.loader.forget(digest)
        return f"Success: LoRA adapter '{body.lora_name}' removed successfully."

    @router.post(
        "/v1/adapters/alias",
        responses={
            200: {"model": NamedVersion},
            **error_responses(400, 401, 403, 413, 500, 503),
        },
    )
    async def alias_adapter(body: AliasRequest, request: Request) -> Any:
        """Load an adapter that the server has, and let a name mean it from now on."""
        shelf = shelf_of(service).acting(service.admin(request).tenant)
        return await publish(service, shelf, body.name, body.digest, tenant=body.tenant)

    @router.post(
        "/v1/adapters/rollback",
        responses={200: {"model": NamedVersion}, **error_responses(400, 401, 403, 413)},
    )
    async def rollback_adapter(body: RollbackRequest, request: Request) -> Any:
        """Let a name mean what it meant before."""
        shelf = shelf_of(service).acting(service.admin(request).tenant)
        await asyncio.to_thread(shelf.rollback, body.name, tenant=body.tenant)
        return await _current(shelf, body.name, body.tenant)

    @router.get(
        "/v1/adapters/history",
        responses={200: {"model": History}, **error_responses(400, 401, 403)},
    )
    async def adapter_history(request: Request, name: str, tenant: str = "") -> Any:
        """What a name has meant, newest first."""
        shelf = shelf_of(service).acting(service.admin(request).tenant)
        found = await asyncio.to_thread(shelf.history, name, tenant=tenant)
        return {"data": [_version(each) for each in found]}

    return router
