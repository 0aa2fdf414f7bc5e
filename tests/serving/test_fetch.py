"""Images by URL: a server of this machine, and addresses that are not public."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from fastapi.testclient import TestClient

from ituning_hf.serving import fetch
from ituning_hf.serving.errors import RequestError
from ituning_hf.serving.fetch import fetch_image

REDIRECTS = {"/moved": "/image", "/private": "http://127.0.0.2/image", "/file": "file:///etc/passwd"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        step = self.path.removeprefix("/step")
        location = REDIRECTS.get(self.path) or (f"/step{int(step) + 1}" if step.isdecimal() else None)
        body = self.headers["Host"].encode()
        self.send_response(302 if location else 200 if self.path == "/image" else 404)
        if location:
            self.send_header("Location", location)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that counts as public, and answers with the Host header that it got."""
    monkeypatch.setattr(fetch, "is_public", lambda address: str(address) == "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"localhost:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_url_is_fetched(host: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    for path in ("image", "moved"):
        assert asyncio.run(fetch_image(f"http://{host}/{path}", len(host))) == host.encode()


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("missing", 422, "answers with status 404"),
        ("private", 422, "'127.0.0.2', which is not a public address"),
        ("file", 422, "scheme 'file'"),
        ("step1", 422, "more than 3 redirects"),
        ("image", 413, "more than 5 bytes"),
    ],
)
def test_answers_that_are_no_image(host: str, path: str, status: int, reason: str):
    with pytest.raises(RequestError, match=reason) as raised:
        asyncio.run(fetch_image(f"http://{host}/{path}", 5))
    assert raised.value.status == status


NOT_PUBLIC = ["localhost", "127.0.0.1:1", "2130706433", "0x7f.1", "10.0.0.1", "169.254.169.254", "0.0.0.0"]
NOT_PUBLIC += ["[::1]", "[::ffff:127.0.0.1]", "[::]", "[fe80::1]", "[fd00::1]", "224.0.0.1", "100.64.0.1"]
NOT_PUBLIC += ["[::ffff:100.64.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[2001::1]"]


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_addresses_that_are_not_public_are_refused(address: str):
    with pytest.raises(RequestError, match="not a public address"):
        asyncio.run(fetch_image(f"http://{address}/", 5))


@pytest.mark.parametrize(
    "url", ["http://", "http://a b/", "http://no.such.host.invalid/", "http://[::1", "http://a..b/"]
)
def test_a_wrong_url_is_refused(url: str):
    with pytest.raises(RequestError, match=r"cannot be fetched|not a public"):
        asyncio.run(fetch_image(url, 5))


def test_requests_with_a_url(server: Callable[..., TestClient], host: str):
    url = {"type": "image_url", "image_url": {"url": f"HTTP://{host}/image"}}
    request = {"model": "day", "messages": [{"role": "user", "content": [url]}]}
    refused = server().post("/v1/chat/completions", json=request)
    assert (refused.status_code, "fetches no URLs" in refused.text) == (422, True)
    fetched = server(allow_url=True).post("/v1/chat/completions", json=request)
    assert (fetched.status_code, "not an image of a supported format" in fetched.text) == (422, True)
