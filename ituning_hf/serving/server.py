"""The HTTP server's application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse, Response
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from .._version import __version__
from . import caption_api, ollama_api, openai_api
from .arguments import ServerArguments
from .captioners import Captioner
from .errors import RequestError, error_response
from .limits import KeyCheck, RequestLimits
from .metrics import RequestMetrics
from .service import CaptionService

BODY_SECONDS = 30.0
_DESCRIPTION = """\
Captions of images, from an image file and in the interfaces of OpenAI and Ollama. For example:

    curl -F file=@dog.jpg http://127.0.0.1:8000/caption"""
_KEY_DESCRIPTION = """

This server requires a key: add `-H 'Authorization: Bearer KEY'` to such a command, and enter the key under
*Authorize* before *Try it out*."""


def create_app(captioners: Mapping[str, Captioner], settings: ServerArguments) -> FastAPI:
    """Create the application of a server.

    Args:
        captioners: The captioners by name; the first is the default.
        settings: The key and the limits.
    """
    service = CaptionService(captioners, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    has_key = settings.api_key is not None
    # As FastAPI, with a page /docs that loads no scripts from elsewhere.
    app = FastAPIOffline(
        redoc_url=None,
        title="ituning serve",
        description=_DESCRIPTION + (_KEY_DESCRIPTION if has_key else ""),
        version=__version__,
        lifespan=lifespan,
        swagger_ui_parameters={"defaultModelsExpandDepth": -1},  # no list of all schemas
        # Only describes the key for the page; `KeyCheck` checks it.
        dependencies=[Depends(HTTPBearer(auto_error=False))] if has_key else None,
    )
    app.state.service = service
    for interface in (caption_api, openai_api, ollama_api):
        app.include_router(interface.make_router(service))
    _add_operations(app, service)
    for kind in (RequestError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _answer_error)
    # The last is the first to see a request.
    app.add_middleware(
        RequestLimits,
        max_requests=settings.max_queue,
        max_body_bytes=settings.max_body_bytes,
        body_seconds=BODY_SECONDS,
    )
    if settings.api_key is not None:
        app.add_middleware(KeyCheck, api_key=settings.api_key)
    app.add_middleware(RequestMetrics, metrics=service.metrics, paths=app.openapi()["paths"])
    return app


def _add_operations(app: FastAPI, service: CaptionService) -> None:
    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return RedirectResponse("docs")

    @app.get("/healthz", summary="Whether the server runs", tags=["Server"])
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics", summary="Metrics in the format of Prometheus", tags=["Server"])
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


async def _answer_error(request: Request, error: Any) -> Response:
    if isinstance(error, RequestValidationError):
        error = RequestError(422, "; ".join(map(_explain, error.errors())))
    elif isinstance(error, HTTPException):
        reasons = {
            404: f"there is no {request.url.path!r}: the interfaces are /caption, /v1 (OpenAI's) and /api "
            "(Ollama's); the page /docs describes them",
            405: f"{request.url.path!r} does not take {request.method} requests: see the page /docs",
        }
        reason = reasons.get(error.status_code, str(error.detail))
        error = RequestError(error.status_code, reason, dict(error.headers or {}))
    return error_response(request.url.path, error)


def _explain(problem: dict[str, Any]) -> str:
    """Describe a wrong field without its value, which may be an image."""
    if problem["loc"] == ("body",):
        return "the body is not a JSON object: send one, with the header Content-Type: application/json"
    if problem["type"] == "json_invalid":
        return f"the body is not JSON: {problem['ctx']['error']} at character {problem['loc'][1]}"
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
