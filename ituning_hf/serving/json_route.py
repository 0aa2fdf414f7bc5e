"""Bound the number of values in a JSON body."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute

from .errors import RequestError

MAX_COMMAS = 10_000  # commas separate the values; base64 has none


class BoundedJsonRoute(APIRoute):
    """A route that refuses bodies with too many values before they are parsed.

    Millions of empty lists fit into a body, and would take gigabytes of memory and a minute to validate.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the function that answers a request."""
        handle = super().get_route_handler()

        async def handle_bounded(request: Request) -> Response:
            if (await request.body()).count(b",") > MAX_COMMAS:
                raise RequestError(
                    413, f"the body has more than {MAX_COMMAS} commas: shorten the conversation"
                )
            return await handle(request)

        return handle_bounded
