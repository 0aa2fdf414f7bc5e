"""A Hub on the loopback address: the real `huggingface_hub` client talks to it over HTTP.

It serves models, Spaces (with names such as "spaces/org/app"), and of the API what loading and pushing need.
Every file is an ordinary one, without LFS or Xet.
"""

import base64
import hashlib
import json
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import unquote, urlsplit

import transformers.utils.hub
from huggingface_hub import constants, hf_api

USERS = {"writer": ("ann", ("ann", "org")), "reader": ("bob", ("bob",))}  # by token: name and namespaces
CLIENTS_WARNING = "Use 'content=<...>' to upload raw bytes"  # the client's own use of httpx
_OTHERS_SETTINGS = ("HF_", "HUGGING", "TRANSFORMERS_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


@contextmanager
def running_hub(models: Mapping[str, Path] | None = None) -> Iterator["LoopbackHub"]:
    """Serve folders as model repositories, by id.

    ```python
    with running_hub({"gpt2": folder}) as hub, use_hub(hub.endpoint, tmp_path):
        GPT2LMHeadModel.from_pretrained("gpt2")
    ```
    """
    hub = LoopbackHub()
    try:
        for name, folder in (models or {}).items():
            files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
            hub.create(name).commit(files)
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
    assert hub.misunderstood == []


@contextmanager
def use_hub(endpoint: str, home: Path, token: str | None = None) -> Iterator[None]:
    """Connect this process's `huggingface_hub` to an endpoint, with a cache in `home`."""
    settings = {
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
    }
    with ExitStack() as stack:
        stack.enter_context(patch.multiple(constants, **settings))
        stack.enter_context(patch.object(hf_api.api, "endpoint", endpoint))
        stack.enter_context(patch.object(transformers.utils.hub, "_hf_api", None))
        stack.enter_context(patch.dict(os.environ))
        os.environ.pop("HF_TOKEN", None)
        if token is not None:
            os.environ["HF_TOKEN"] = token
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", CLIENTS_WARNING, DeprecationWarning)
        yield


def client_environment(endpoint: str, home: Path) -> dict[str, str]:
    """Return the environment of a process that uses an endpoint, with a cache in `home`."""
    kept = {k: v for k, v in os.environ.items() if not k.upper().startswith(_OTHERS_SETTINGS)}
    return kept | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


class RefusedError(Exception):
    """An answer other than success: its status, and the Hub's two headers with the reason."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: object) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body


@dataclass(frozen=True)
class Commit:
    sha: str
    message: str
    files: Mapping[str, bytes]


@dataclass
class Repository:
    name: str
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit({".gitattributes": b""}, message="initial commit")

    def commit(
        self,
        files: Mapping[str, bytes],
        branch: str = "main",
        message: str = "",
        deleted: Sequence[str] = (),
    ) -> Commit:
        """Add a commit to a branch."""
        parent = self.branches.get(branch)
        kept = self.commits[parent].files if parent else {}
        files = {path: data for path, data in kept.items() if path not in deleted} | dict(files)
        content = {path: hashlib.sha1(data).hexdigest() for path, data in sorted(files.items())}
        sha = hashlib.sha1(json.dumps([self.name, parent, message, content]).encode()).hexdigest()
        self.commits[sha] = Commit(sha, message, files)
        self.branches[branch] = sha
        return self.commits[sha]

    def at(self, revision: str = "main") -> Commit:
        sha = self.branches.get(revision) or revision
        if sha not in self.commits:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[sha]


class LoopbackHub:
    """A running Hub."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.repositories: dict[str, Repository] = {}
        self.misunderstood: list[str] = []
        self.refuses_commits = False
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.hub = self  # type: ignore[attr-defined]
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def create(self, name: str, private: bool = False) -> Repository:
        if name in self.repositories:
            raise RefusedError(409, "You already created this model repo")
        self.repositories[name] = Repository(name, private)
        return self.repositories[name]


REPO = r"(?P<repo>(?:spaces/)?[^/]+(?:/[^/]+)??)"
ROUTES: list[tuple[str, re.Pattern[str], Callable[..., None]]] = []


def route(method: str, pattern: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def add(function: Callable[..., None]) -> Callable[..., None]:
        ROUTES.append((method, re.compile(pattern.replace("REPO", REPO)), function))
        return function

    return add


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise each answer waits 40 ms for the client's acknowledgement
    commit: Commit | None

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:  # the client closed the connection
            self.close_connection = True

    def do_any(self) -> None:
        self.hub: LoopbackHub = self.server.hub  # type: ignore[attr-defined]
        # Parts are unquoted one by one: the revision "refs%2Fpr%2F1" is one part.
        path = urlsplit(self.path).path.replace("/api/spaces/", "/api/models/spaces/")
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            with self.hub.lock:
                self.dispatch(path)
        except RefusedError as refused:
            headers = {"X-Error-Message": refused.message}
            headers |= {"X-Error-Code": refused.code} if refused.code else {}
            headers |= {"X-Repo-Commit": self.commit.sha} if self.commit else {}
            self.answer_json({"error": refused.message} | refused.body, refused.status, headers)
        except (KeyError, TypeError, ValueError) as error:  # a request that this Hub does not know
            self.hub.misunderstood.append(f"{self.command} {path}: {error!r}")
            self.answer(400, b"{}")

    do_GET = do_HEAD = do_POST = do_any  # noqa: N815

    def dispatch(self, path: str) -> None:
        method = "GET" if self.command == "HEAD" else self.command
        self.commit = None
        for wanted, pattern, function in ROUTES:
            if wanted == method and (match := pattern.fullmatch(path)):
                parts = {name: unquote(part) for name, part in match.groupdict("").items()}
                return function(self, **parts)
        raise RefusedError(404, f"Sorry, we can't find the page you are looking for: {path}")

    def answer(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def answer_json(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        headers = {"Content-Type": "application/json"} | (headers or {})
        self.answer(status, json.dumps(content).encode(), headers)

    @property
    def user(self) -> tuple[str, tuple[str, ...]] | None:
        if (authorization := self.headers.get("Authorization")) is None:
            return None
        if (token := authorization.removeprefix("Bearer ")) not in USERS:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return USERS[token]

    def readable(self, name: str) -> Repository:
        user, repository = self.user, self.hub.repositories.get(name)
        member = user is not None and namespace_of(name) in user[1]
        if repository is None or (repository.private and not member):
            # The client finds the meaning of a 401 by the address, and only if that is https://.
            raise RefusedError(401 if user is None else 404, "Repository not found", "RepoNotFound")
        return repository

    def writable(self, name: str) -> Repository:
        repository = self.readable(name)
        self.check_write(namespace_of(name))
        return repository

    def check_write(self, namespace: str) -> None:
        if self.user is None:
            raise RefusedError(401, "Invalid username or password.")
        if namespace not in self.user[1]:
            raise RefusedError(403, f'You don\'t have the rights to write under the namespace "{namespace}"')


def namespace_of(name: str) -> str:
    return name.removeprefix("spaces/").split("/")[0]


def content_id(data: bytes) -> str:
    """Return the id by which the client leaves out unchanged files."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


# --- Reading


@route("GET", "/api/models/REPO")
@route("GET", "/api/models/REPO/revision/(?P<revision>[^/]+)")
def model_info(handler: Handler, repo: str, revision: str = "main") -> None:
    repository = handler.readable(repo)
    commit = repository.at(revision)
    siblings = [{"rfilename": path} for path in sorted(commit.files)]
    about = {"id": repo, "sha": commit.sha, "private": repository.private, "siblings": siblings}
    handler.answer_json(about | {"gated": False, "tags": [], "pipeline_tag": "image-text-to-text"})


@route("GET", "/api/models/REPO/tree/(?P<revision>[^/]+)(?:/(?P<folder>.*))?")
def tree(handler: Handler, repo: str, revision: str, folder: str = "") -> None:
    handler.commit = handler.readable(repo).at(revision)
    if folder:
        raise RefusedError(404, f"{folder} does not exist", "EntryNotFound")
    files = sorted(handler.commit.files.items())
    handler.answer_json(
        [{"type": "file", "path": path, "size": len(data), "oid": content_id(data)} for path, data in files]
    )


@route("GET", "/REPO/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
def resolve(handler: Handler, repo: str, revision: str, path: str) -> None:
    handler.commit = handler.readable(repo).at(revision)
    if path not in handler.commit.files:
        raise RefusedError(404, "Entry not found", "EntryNotFound")
    data = handler.commit.files[path]
    headers = {"X-Repo-Commit": handler.commit.sha, "ETag": f'"{content_id(data)}"'}
    handler.answer(200, data, headers | {"Content-Type": "application/octet-stream"})


# --- Writing


@route("POST", "/api/repos/create")
def create(handler: Handler) -> None:
    wanted = json.loads(handler.body)
    namespace = wanted.get("organization") or (handler.user[0] if handler.user else "")
    handler.check_write(namespace)
    is_space = wanted.get("type") == "space" and wanted["sdk"] == "gradio"
    name = f"{'spaces/' if is_space else ''}{namespace}/{wanted['name']}"
    url = f"{handler.hub.endpoint}/{name}"
    try:
        handler.hub.create(name, private=wanted.get("visibility") == "private")
    except RefusedError as refused:
        refused.body["url"] = url
        raise
    handler.answer_json({"url": url, "name": name})


@route("POST", "/api/validate-yaml")
def validate_yaml(handler: Handler) -> None:
    handler.answer_json({"errors": [], "warnings": []})


@route("POST", "/api/models/REPO/branch/(?P<branch>[^/]+)")
def create_branch(handler: Handler, repo: str, branch: str) -> None:
    repository = handler.writable(repo)
    if branch in repository.branches:
        raise RefusedError(409, f"Reference refs/heads/{branch} already exists")
    repository.branches[branch] = repository.at(json.loads(handler.body).get("startingPoint", "main")).sha
    handler.answer_json({})


@route("POST", "/api/models/REPO/preupload/(?P<revision>[^/]+)")
def preupload(handler: Handler, repo: str, revision: str) -> None:
    present = handler.writable(repo).at(revision).files
    files = []
    for file in json.loads(handler.body)["files"]:
        path = file["path"]
        about = {"path": path, "uploadMode": "regular", "shouldIgnore": False}
        files.append(about | ({"oid": content_id(present[path])} if path in present else {}))
    handler.answer_json({"files": files})


@route("POST", "/api/models/REPO/commit/(?P<revision>[^/]+)")
def commit(handler: Handler, repo: str, revision: str) -> None:
    repository = handler.writable(repo)
    if handler.hub.refuses_commits:
        raise RefusedError(500, "Internal error")
    if revision not in repository.branches:
        raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    lines = [json.loads(line) for line in handler.body.splitlines()]
    keys = ("header", "file", "deletedFile")
    values = {key: [x["value"] for x in lines if x["key"] == key] for key in keys}
    files = {file["path"]: base64.b64decode(file["content"]) for file in values["file"]}
    deleted = [file["path"] for file in values["deletedFile"]]
    made = repository.commit(files, revision, values["header"][0]["summary"], deleted)
    url = f"{handler.hub.endpoint}/{repo}/commit/{made.sha}"
    handler.answer_json({"success": True, "commitOid": made.sha, "commitUrl": url, "hookOutput": ""})
