"""Refuse requests before they are handled: a wrong key, too many requests, a large or slow body."""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .errors import RETRY_AFTER, RequestError, error_response

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

# Paths to GET without the key: they contain no data, and browsers cannot send it for a page.
WITHOUT_KEY = re.compile(r"/(healthz|docs|openapi\.json|static-offline-docs/.*)?")


class _DisconnectedError(Exception):
    """The client has closed the connection: nobody waits for an answer."""


class KeyCheck:
    """ASGI middleware that requires `Authorization: Bearer KEY`, except for `/healthz` and the page `/docs`.

    Args:
        app: The application.
        api_key: The key.
    """

    def __init__(self, app: Application, api_key: str) -> None:
        self.app, self.expected = app, f"Bearer {api_key}".encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle or refuse a request."""
        is_open = scope["type"] != "http" or (
            scope["method"] == "GET" and WITHOUT_KEY.fullmatch(scope["path"])
        )
        if not is_open:
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self.expected):
                message = "the key is missing or wrong: send the header Authorization: Bearer KEY"
                error = RequestError(401, message, {"WWW-Authenticate": "Bearer"})
                return await error_response(scope["path"], error)(scope, receive, send)
        return await self.app(scope, receive, send)


class RequestLimits:
    """ASGI middleware that bounds the number of POST requests and their bodies.

    A request is counted until it is answered. Its body is read completely before it is handled, and its
    handler is cancelled if the client disconnects.

    Args:
        app: The application.
        max_requests: Requests at a time. Further requests get status 429 before their body is read.
        max_body_bytes: The size of a body; status 413.
        body_seconds: The time to send a body; status 408.
    """

    def __init__(self, app: Application, max_requests: int, max_body_bytes: int, body_seconds: float) -> None:
        self.app, self.max_requests = app, max_requests
        self.max_body_bytes, self.body_seconds = max_body_bytes, body_seconds
        self.num_requests = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle or refuse a request."""
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        try:
            if self.num_requests >= self.max_requests:
                raise RequestError(
                    429, f"{self.max_requests} requests are in progress: try again later", RETRY_AFTER
                )
            self.num_requests += 1
            try:
                await _handle(self.app, scope, await self._read_body(scope, receive), receive, send)
            finally:
                self.num_requests -= 1
        except RequestError as error:
            await error_response(scope["path"], error)(scope, receive, send)
        except _DisconnectedError:
            pass

    async def _read_body(self, scope: Message, receive: Receive) -> bytes:
        too_large = RequestError(
            413, f"the body has more than {self.max_body_bytes} bytes: send a smaller image"
        )
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if int(declared) > self.max_body_bytes:  # the server has checked that it is a number
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _DisconnectedError
                    body += message.get("body", b"")
                    if len(body) > self.max_body_bytes:
                        raise too_large
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError as error:
            reason = f"the body was not received within {self.body_seconds:g} seconds"
            raise RequestError(408, reason, {"Connection": "close"}) from error


async def _handle(app: Application, scope: Message, body: bytes, receive: Receive, send: Send) -> None:
    """Call the application with a body that has been read; cancel it if the client disconnects."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    del body  # the application keeps it, as a copy
    disconnected = asyncio.Event()

    async def receive_again() -> Message:
        if messages:
            return messages.pop()
        await disconnected.wait()
        return {"type": "http.disconnect"}

    handling = asyncio.ensure_future(app(scope, receive_again, send))

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        disconnected.set()
        handling.cancel()

    watching = asyncio.ensure_future(watch())
    try:
        await handling
    except asyncio.CancelledError:
        if not disconnected.is_set():
            raise
    finally:
        watching.cancel()
