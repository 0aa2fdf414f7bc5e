"""A Hub on the loopback address: real HTTP, spoken with the real `huggingface_hub` through HF_ENDPOINT.

It knows models alone, and of the API what loading and pushing need. Large files go by LFS: the client would
send them by Xet where that is installed, which is switched off by its own HF_HUB_DISABLE_XET.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hub_connections import Fault, Handler, LoopbackHub, route
from hub_repositories import RefusedError, content_id, is_large


@contextmanager
def loopback_hub() -> Iterator[LoopbackHub]:
    hub = LoopbackHub()
    try:
        yield hub
    finally:
        hub.close()
    assert hub.misunderstood == []


# --- Reading


@route("GET", "/api/models/REPO")
@route("GET", "/api/models/REPO/revision/(?P<revision>[^/]+)")
def model_info(handler: Handler, repo: str, revision: str = "main") -> None:
    repository = handler.readable(repo)
    commit = repository.at(revision)
    siblings = [{"rfilename": path} for path in sorted(commit.files)]
    about = {"id": repo, "sha": commit.sha, "private": repository.private, "siblings": siblings}
    about |= {"gated": repository.gated}
    about |= {"tags": [], "pipeline_tag": "image-text-to-text"}
    handler.answer_json(about)


@route("GET", "/api/models/REPO/tree/(?P<revision>[^/]+)(?:/(?P<folder>.*))?")
def tree(handler: Handler, repo: str, revision: str, folder: str = "") -> None:
    handler.commit = handler.readable(repo).at(revision)
    if folder:  # no repository of a captioner has folders
        raise RefusedError(404, f"{folder} does not exist", "EntryNotFound")
    files = handler.commit.files.items()
    handler.answer_json([describe_file(path, data) for path, data in sorted(files)])


def describe_file(path: str, data: bytes) -> dict[str, Any]:
    about: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": content_id(path, data)}
    if is_large(path, len(data)):
        about["lfs"] = {"oid": about["oid"], "size": len(data), "pointerSize": 134}
    return about


@route("GET", "/REPO/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
def resolve(handler: Handler, repo: str, revision: str, path: str) -> None:
    handler.commit = handler.readable(repo).at(revision)
    if path not in handler.commit.files:
        raise RefusedError(404, "Entry not found", "EntryNotFound")
    data = handler.commit.files[path]
    etag = f'"{content_id(path, data)}"'
    headers = {"X-Repo-Commit": handler.commit.sha}
    if not is_large(path, len(data)):
        return send_file(handler, data, headers | {"ETag": etag})
    oid = hashlib.sha256(data).hexdigest()
    handler.state.large_files[oid] = data
    headers |= {"Location": f"{handler.hub.storage}/storage/{oid}"}
    headers |= {"X-Linked-Size": str(len(data)), "X-Linked-ETag": etag}
    return handler.answer(302, b"", headers)


@route("GET", "/storage/(?P<oid>[0-9a-f]+)")
def stored_file(handler: Handler, oid: str) -> None:
    if handler.headers.get("Authorization"):
        raise RefusedError(400, "the token has left the Hub")
    send_file(handler, handler.state.large_files[oid], {"ETag": f'"{oid}"'})


def send_file(handler: Handler, data: bytes, headers: dict[str, str]) -> None:
    headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"} | headers
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", ""))
    if wanted is None:
        return handler.answer(200, data, headers)
    first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
    headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
    return handler.answer(206, data[first : last + 1], headers)


# --- Writing


@route("POST", "/api/repos/create")
def create(handler: Handler) -> None:
    wanted = json.loads(handler.body)
    namespace = wanted.get("organization") or (handler.user.name if handler.user else "")
    handler.state.check_write(namespace, handler.user)
    name = f"{namespace}/{wanted['name']}"
    url = f"{handler.hub.endpoint}/{name}"
    try:
        handler.state.create(name, private=wanted.get("visibility") == "private")
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


@route("POST", "/api/models/REPO/tag/(?P<revision>[^/]+)")
def create_tag(handler: Handler, repo: str, revision: str) -> None:
    repository = handler.writable(repo)
    repository.tags[json.loads(handler.body)["tag"]] = repository.at(revision).sha
    handler.answer_json({})


@route("POST", "/api/models/REPO/preupload/(?P<revision>[^/]+)")
def preupload(handler: Handler, repo: str, revision: str) -> None:
    present = handler.writable(repo).at(revision).files
    files = []
    for file in json.loads(handler.body)["files"]:
        path = file["path"]
        mode = "lfs" if is_large(path, file["size"]) else "regular"
        about = {"path": path, "uploadMode": mode, "shouldIgnore": False}
        files.append(about | ({"oid": content_id(path, present[path])} if path in present else {}))
    handler.answer_json({"files": files})


@route("POST", r"/REPO\.git/info/lfs/objects/batch")
def lfs_batch(handler: Handler, repo: str) -> None:
    handler.writable(repo)
    objects = json.loads(handler.body)["objects"]
    for entry in objects:
        if entry["oid"] not in handler.state.large_files:
            entry["actions"] = {"upload": {"href": f"{handler.hub.storage}/storage/{entry['oid']}"}}
    handler.answer_json({"transfer": "basic", "objects": objects})


@route("PUT", "/storage/(?P<oid>[0-9a-f]+)")
def store_file(handler: Handler, oid: str) -> None:
    if hashlib.sha256(handler.body).hexdigest() != oid:
        raise RefusedError(400, "the content is another one than its name says")
    handler.state.large_files[oid] = handler.body
    handler.answer(200, b"")


@route("POST", "/api/models/REPO/commit/(?P<revision>[^/]+)")
def commit(handler: Handler, repo: str, revision: str) -> None:
    repository = handler.writable(repo)
    if revision not in repository.branches:
        raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    lines = [json.loads(line) for line in handler.body.splitlines()]
    keys = ("header", "file", "lfsFile", "deletedFile")
    values = {key: [x["value"] for x in lines if x["key"] == key] for key in keys}
    files = {file["path"]: base64.b64decode(file["content"]) for file in values["file"]}
    files |= {file["path"]: handler.state.large_files[file["oid"]] for file in values["lfsFile"]}
    deleted = [file["path"] for file in values["deletedFile"]]
    made = repository.commit(revision, files, values["header"][0]["summary"], deleted)
    url = f"{handler.hub.endpoint}/{repo}/commit/{made.sha}"
    handler.answer_json({"success": True, "commitOid": made.sha, "commitUrl": url, "hookOutput": ""})


@route("POST", "/test/faults")
def add_fault(handler: Handler) -> None:
    """Let the process under test say what goes wrong next; the real Hub has no such thing."""
    handler.hub.faults = [Fault(**json.loads(handler.body))]
    handler.answer_json({})


@route("GET", "/test/faults")
def faults_met(handler: Handler) -> None:
    """Tell which requests met the last fault that was asked for."""
    handler.answer_json(handler.hub.faults[-1].met)
