"""``POST /v1/adapters/upload``: an administrator's adapter, from a page or a program.

One JSON object holds both files of PEFT's format: the config as it is, the weights in base64. They
are written to a temporary folder and taken in from there by the same way as an adapter on disk, so
that whatever is refused there is refused here. Large ones are better put by `ince registry put`.
"""

import asyncio
import base64
import binascii
import json
import tempfile
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field

from ince.errors import AdapterError, CorruptFileError, InceError, InputError
from ince.formats.adapter import CONFIG_FILE, WEIGHTS_FILE
from ince.serve.http.directory import AdapterShelf, check_name
from ince.serve.http.errors import ApiError, error_responses
from ince.serve.http.lora import NamedVersion, publish, shelf_of
from ince.serve.http.service import Service
from ince.serve.http.strict import Strict, Text

__all__ = ["upload_routes"]


class UploadRequest(Strict):
    """Both files of an adapter."""

    name: Text = Field(min_length=1, max_length=512)
    """That it is to have; what the name meant before is what a rollback goes to."""
    config: dict[str, Any]
    """The content of `adapter_config.json`."""
    weights: str = Field(json_schema_extra={"contentEncoding": "base64"})
    """`adapter_model.safetensors`, in base64."""
    tenant: Text = Field("", max_length=128)
    """Whose it is; empty for everybody's."""


def upload_routes(service: Service) -> APIRouter:
    """The route, over `service`."""
    router = APIRouter(tags=["administration"])

    @router.post(
        "/v1/adapters/upload",
        responses={
            200: {"model": NamedVersion},
            **error_responses(400, 401, 403, 408, 413, 500, 503, 507),
        },
    )
    async def upload_adapter(body: UploadRequest, request: Request) -> Any:
        """Take an adapter in, load it, and give it its name when that went well."""
        caller = service.admin(request)
        check_name(body.name)
        shelf = shelf_of(service).acting(caller.tenant)
        digest = await asyncio.to_thread(_keep, shelf, body)
        return await publish(service, shelf, body.name, digest, tenant=body.tenant)

    return router


def _keep(shelf: AdapterShelf, body: UploadRequest) -> str:
    try:
        weights = base64.b64decode(body.weights, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(
            400, "weights: this is not base64.", param="weights", code="invalid_value"
        ) from None
    try:
        config = json.dumps(body.config, allow_nan=False)
    except (ValueError, RecursionError):
        raise InputError("the config is no JSON that a file could hold") from None
    with tempfile.TemporaryDirectory(prefix="ince-upload-") as folder:
        place = Path(folder)
        (place / CONFIG_FILE).write_text(config, encoding="utf-8")
        (place / WEIGHTS_FILE).write_bytes(weights)
        try:
            return shelf.keep(place, name=body.name, tenant=body.tenant)
        except InceError as error:
            if error.where is None or folder not in error.where:
                raise
            # What was sent is named, and not the folder that is gone when this is read.
            error.where = error.where.replace(f"{folder}/", "").replace(folder, body.name)
            if isinstance(error, CorruptFileError):  # a file that the client sent, not one of ours
                raise AdapterError(
                    error.what,
                    where=error.where,
                    got=error.got,
                    expected=error.expected,
                    do="send the adapter's files again, whole",
                ) from error
            raise
