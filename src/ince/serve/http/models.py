"""``GET /v1/models``: the base, and what the caller may use beside it."""

from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel

from ince.serve.http.directory import NamedAdapter
from ince.serve.http.errors import error_responses
from ince.serve.http.service import Service, caller_of

__all__ = ["model_routes"]


class Model(BaseModel):
    """A name that `model` may have."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    parent: str | None
    """The base, of an adapter."""
    root: str
    """What the name stands for: an adapter's digest, or the base's name."""
    max_model_len: int


class Models(BaseModel):
    """All of them."""

    object: Literal["list"]
    data: list[Model]


def model_routes(service: Service) -> APIRouter:
    """The routes, over `service`."""
    router = APIRouter(tags=["models"])
    base_name = service.settings.base_name

    def base() -> dict[str, Any]:
        return {
            "id": base_name,
            "object": "model",
            "created": service.started,
            "owned_by": "ince",
            "parent": None,
            "root": base_name,
            "max_model_len": service.settings.context_length,
        }

    def adapter(found: NamedAdapter) -> dict[str, Any]:
        return {
            **base(),
            "id": found.name,
            "created": found.created,
            "owned_by": found.tenant or "ince",
            "parent": base_name,
            "root": found.digest,
        }

    @router.get("/v1/models", responses={200: {"model": Models}, **error_responses(401)})
    async def list_models(request: Request) -> Any:
        """Everything that the key may use."""
        tenant = caller_of(request).tenant
        found = service.directory.adapters(tenant)
        first = [base()] if service.directory.may_use_base(tenant) else []
        return {
            "object": "list",
            "data": [*first, *(adapter(found[name]) for name in sorted(found))],
        }

    @router.get(
        "/v1/models/{model:path}", responses={200: {"model": Model}, **error_responses(401, 404)}
    )
    async def retrieve_model(model: str, request: Request) -> Any:
        """One of them."""
        caller = caller_of(request)
        if model == base_name:
            service.resolve(caller, model)
            return base()
        return adapter(service.adapter(caller, model))

    return router
