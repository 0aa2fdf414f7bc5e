"""Metrics in the format of Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from .limits import Application, Message, Receive, Send

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_IMAGES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The metrics of one server.

    Args:
        num_waiting: Returns the number of images that wait.
    """

    def __init__(self, num_waiting: Callable[[], int]) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "ituning_requests", "Answered requests", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "ituning_request_seconds",
            "Time from a request to the end of its answer",
            ["path"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_images = Histogram(
            "ituning_batch_images", "Images in a batch", buckets=_IMAGES, registry=registry
        )
        self.captions = Counter("ituning_captions", "Generated captions", ["model"], registry=registry)
        waiting = Gauge("ituning_waiting_images", "Images that wait to be captioned", registry=registry)
        waiting.set_function(num_waiting)


class RequestMetrics:
    """ASGI middleware that counts requests by path and status, and measures their time.

    Args:
        app: The application.
        metrics: Where they are recorded.
        paths: The known paths; others are counted together, because a client can invent any number.
    """

    def __init__(self, app: Application, metrics: Metrics, paths: Collection[str]) -> None:
        self.app, self.metrics, self.paths = app, metrics, paths

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = scope["path"] if scope["path"] in self.paths else "other"
        status, start = 499, time.perf_counter()  # the client disconnected before an answer

        async def observe(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, observe)
        except Exception:
            status = 500
            raise
        finally:
            self.metrics.requests.labels(path, status).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - start)
