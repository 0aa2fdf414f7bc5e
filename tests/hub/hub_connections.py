"""The loopback Hub's connections: requests to functions, and the faults that were asked for."""

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from hub_repositories import Commit, RefusedError, Repositories, Repository, User

REPO = r"(?P<repo>[^/]+(?:/[^/]+)??)"
ROUTES: list[tuple[str, re.Pattern[str], Callable[..., None]]] = []


def route(method: str, pattern: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def add(function: Callable[..., None]) -> Callable[..., None]:
        ROUTES.append((method, re.compile(pattern.replace("REPO", REPO)), function))
        return function

    return add


@dataclass
class Fault:
    """What the next requests that match meet with, instead of their answer."""

    pattern: str  # of "METHOD /path"
    times: int
    status: int | None = None  # None: the connection is cut in the middle of the request's body
    retry_after: int | None = None
    met: list[str] = field(default_factory=list)  # the requests that did


class LoopbackHub:
    """A running Hub and, as a second server, the storage that it redirects large files to."""

    def __init__(self) -> None:
        self.repositories = Repositories()
        self.requests: list[str] = []  # "METHOD /path" of each
        self.misunderstood: list[str] = []
        self.faults: list[Fault] = []
        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
        self.endpoint, self.storage = (f"http://127.0.0.1:{s.server_address[1]}" for s in self.servers)
        for server in self.servers:
            server.hub = self  # type: ignore[attr-defined]
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def take_fault(self, request: str) -> Fault | None:
        with self.repositories.lock:
            for fault in self.faults:
                if len(fault.met) < fault.times and re.search(fault.pattern, request):
                    fault.met.append(request)
                    return fault
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits 40 ms for the client to confirm its headers
    user: User | None

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing on the terminal."""

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:  # the client has gone, as it may
            self.close_connection = True

    def do_any(self) -> None:
        self.hub: LoopbackHub = self.server.hub  # type: ignore[attr-defined]
        self.state = self.hub.repositories
        # The revision "refs%2Fpr%2F1" is one part of a path, so parts are unquoted one by one.
        path = urlsplit(self.path).path
        request = f"{self.command} {path}"
        self.hub.requests.append(request)
        try:
            fault = self.hub.take_fault(request)
            if fault is not None and fault.status is None:
                return self.cut()
            self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if fault is not None:
                retry = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
                return self.answer(fault.status, b"{}", retry)
            with self.state.lock:
                self.dispatch(path)
        except RefusedError as refused:
            self.refuse(refused)
        except (KeyError, TypeError, ValueError) as error:  # a request that this Hub does not understand
            self.hub.misunderstood.append(f"{request}: {error!r}")
            self.answer(400, b"{}")

    do_GET = do_HEAD = do_POST = do_PUT = do_any  # noqa: N815

    def cut(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]) // 2)
        self.close_connection = True
        self.connection.close()

    def dispatch(self, path: str) -> None:
        method = "GET" if self.command == "HEAD" else self.command
        self.commit: Commit | None = None
        for wanted, pattern, function in ROUTES:
            if wanted == method and (match := pattern.fullmatch(path)):
                self.user = self.state.user(self.headers.get("Authorization"))
                parts = {name: unquote(part) for name, part in match.groupdict("").items()}
                return function(self, **parts)
        raise RefusedError(404, f"Sorry, we can't find the page you are looking for: {path}")

    def answer(self, status: int | None, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status or 200)
        for name, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def answer_json(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.answer(
            status, json.dumps(content).encode(), {"Content-Type": "application/json"} | (headers or {})
        )

    def refuse(self, refused: RefusedError) -> None:
        headers = {"X-Error-Message": refused.message}
        headers |= {"X-Error-Code": refused.code} if refused.code else {}
        headers |= {"X-Repo-Commit": self.commit.sha} if self.commit else {}
        self.answer_json({"error": refused.message} | refused.body, refused.status, headers)

    def readable(self, repo: str) -> Repository:
        return self.state.readable(repo, self.user)

    def writable(self, repo: str) -> Repository:
        return self.state.writable(repo, self.user)
