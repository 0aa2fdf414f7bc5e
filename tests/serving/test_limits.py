"""What is refused before a request is handled."""

import asyncio
from typing import Any

import pytest

from ituning_hf.serving.limits import RequestLimits


class Exchange:
    """A request to an application that returns the size of the body, and its answer.

    `body` has the parts of the body. None is a part that never comes. The client closes the connection at
    "cut", in the body, and at "end", after it.
    """

    def __init__(self, *body: Any, path: str = "/caption", headers: dict[str, str] | None = None) -> None:
        pairs = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
        self.scope = {"type": "http", "method": "POST", "path": path, "headers": pairs}
        self.parts, self.sent = list(body), []
        self.reads, self.is_reading = 0, asyncio.Event()

    async def receive(self) -> Any:
        self.reads += 1
        self.is_reading.set()
        part = self.parts.pop(0) if self.parts else None
        if part is None:
            await asyncio.Event().wait()
        if part in ("cut", "end"):
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": part, "more_body": self.parts not in ([], ["end"])}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    @property
    def body(self) -> bytes:
        return self.sent[1]["body"]

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])


async def count(scope: Any, receive: Any, send: Any) -> None:
    message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(len(message["body"])).encode()})


async def call(limits: RequestLimits, *body: Any, **options: Any) -> Exchange:
    exchange = Exchange(*body, **options)
    await limits(exchange.scope, exchange.receive, exchange.send)
    return exchange


def make_limits(app: Any = count, body_seconds: float = 3600) -> RequestLimits:
    return RequestLimits(app, max_requests=1, max_body_bytes=10, body_seconds=body_seconds)


def test_bodies_are_bounded():
    async def run() -> None:
        limits = make_limits()
        for parts in ([b"0123456789"], [b"01234", b"", b"56789"]):
            answer = await call(limits, *parts)
            assert (answer.status, answer.body) == (200, b"10")
        declared = await call(limits, b"01234567890", headers={"Content-Length": "11"})
        assert (declared.status, declared.reads) == (413, 0)
        chunked = await call(limits, b"01234", b"567890", b"never read")
        assert (chunked.status, chunked.parts) == (413, [b"never read"])
        assert b"more than 10 bytes" in chunked.body

    asyncio.run(run())


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/caption", b'{"detail":"1 requests are in progress: try again later"}'),
        ("/api/chat", b'{"error":"1 requests are in progress: try again later"}'),
        (
            "/v1/chat/completions",
            b'{"error":{"message":"1 requests are in progress: try again later","type":"rate_limit_error",'
            b'"param":null,"code":429}}',
        ),
    ],
)
def test_more_requests_are_refused_before_their_body_is_read(path: str, answer: bytes):
    async def run() -> None:
        limits = make_limits()
        first = Exchange(b"0", None)
        handling = asyncio.ensure_future(limits(first.scope, first.receive, first.send))
        await first.is_reading.wait()
        refused = await call(limits, b"0", path=path)
        assert (refused.status, refused.reads, refused.body) == (429, 0, answer)
        assert refused.headers[b"retry-after"] == b"1"
        handling.cancel()
        await asyncio.wait([handling])
        assert (await call(limits, b"0")).status == 200

    asyncio.run(run())


def test_a_slow_body_is_refused():
    slow = asyncio.run(call(make_limits(body_seconds=0.01), b"0", None))
    assert (slow.status, slow.headers[b"connection"]) == (408, b"close")


def test_a_request_ends_when_the_client_disconnects():
    handled = []

    async def never(scope: Any, receive: Any, send: Any) -> None:
        handled.append((await receive())["body"])
        try:
            await asyncio.Event().wait()
        finally:
            handled.append("cancelled")

    async def run() -> None:
        limits = make_limits(never)
        assert (await call(limits, b"01", "cut")).sent == []
        assert handled == []
        assert (await call(limits, b"01", "end")).sent == []
        assert handled == [b"01", "cancelled"]
        assert limits.num_requests == 0

    asyncio.run(run())
