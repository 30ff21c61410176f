"""``/health``, ``/ready`` and ``/metrics``: for who watches over the server."""

from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel

from ince.serve.http.errors import ApiError, error_responses
from ince.serve.http.service import Service

__all__ = ["health_routes"]


class Health(BaseModel):
    """That it is there."""

    status: Literal["ok"]


def health_routes(service: Service) -> APIRouter:
    """The routes, over `service`."""
    router = APIRouter(tags=["health"])

    @router.get("/health", response_model=Health)
    async def health() -> Any:
        """The process answers."""
        return JSONResponse({"status": "ok"})

    @router.get("/ready", response_model=Health, responses=error_responses(503))
    async def ready() -> Any:
        """New requests are taken."""
        if service.is_draining:
            raise ApiError(503, "The server is stopping.", type="server_error", code="draining")
        return JSONResponse({"status": "ok"})

    @router.get(
        "/metrics",
        response_class=Response,
        responses={
            200: {
                "description": "Prometheus' text form.",
                "content": {"text/plain": {"schema": {"type": "string"}}},
            },
            **error_responses(401, 403),
        },
    )
    def metrics(request: Request) -> Response:
        """Counters and gauges. Names of adapters are in them, so the key is an administrator's."""
        service.admin(request)
        text = generate_latest(service.metrics.registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    return router
