"""The playground at ``/``: one page, its style and its script, from this package's files.

The page asks for a key itself, so these three files are open to all who reach the server; they
hold nothing that is the server's. The policy lets the page talk to its own server and nobody else.
"""

from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import Response

__all__ = ["PAGE_PATHS", "page_routes"]

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/playground/playground.css": ("playground.css", "text/css; charset=utf-8"),
    "/playground/playground.js": ("playground.js", "text/javascript; charset=utf-8"),
}

PAGE_PATHS = frozenset(_FILES)
"""Of the page, which is shown before there is a key."""

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def page_routes() -> APIRouter:
    """The routes of the page; no part of the API, so not in its document."""
    router = APIRouter(include_in_schema=False)
    folder = files("ince.serve.http") / "playground"
    for path, (name, media_type) in _FILES.items():
        content = (folder / name).read_bytes()
        router.add_api_route(path, _answering(content, media_type), methods=["GET"])
    return router


def _answering(content: bytes, media_type: str):  # noqa: ANN202  an endpoint
    async def answer() -> Response:
        return Response(content, media_type=media_type, headers=_HEADERS)

    return answer
