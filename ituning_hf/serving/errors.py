"""Refused requests, and their answers in the form that the clients of each interface expect."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse

# The values of "type" in OpenAI's errors; others are "invalid_request_error".
_OPENAI_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
RETRY_AFTER = {"Retry-After": "1"}  # seconds
_MAX_CHARACTERS = 1000  # of a message, which may quote the request


class RequestError(Exception):
    """A request that is refused.

    Args:
        status: The HTTP status.
        message: The reason and what to do, in one line.
        headers: Further headers of the answer.
    """

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message[:_MAX_CHARACTERS], headers


def error_response(path: str, error: RequestError) -> JSONResponse:
    """Return the answer to a refused request; its form depends on the path."""
    content: dict[str, Any] = {"detail": error.message}
    if path.startswith("/v1/"):
        kind = _OPENAI_TYPES.get(error.status)
        kind = kind or ("invalid_request_error" if error.status < 500 else "server_error")
        content = {"error": {"message": error.message, "type": kind, "param": None, "code": error.status}}
    elif path.startswith("/api/"):
        content = {"error": error.message}
    return JSONResponse(content, error.status, headers=error.headers)
