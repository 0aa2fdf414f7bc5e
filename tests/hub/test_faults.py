"""Connections that break and a Hub that is busy: what is retried, what is told; nothing is halved."""

from typing import Any

import pytest

FAULTS = """
import json
from urllib.request import Request, urlopen

from huggingface_hub import HfApi, constants
from ituning_hf import ITuningForCaptioning, push_captioner

folder = sys.argv[1]
api = HfApi()
found = {}


def next_requests(pattern, **what):
    body = json.dumps({"pattern": pattern, "times": 1, **what}).encode()
    urlopen(Request(f"{constants.ENDPOINT}/test/faults", body)).close()


def faults_met():
    return json.load(urlopen(f"{constants.ENDPOINT}/test/faults"))


def push(repo):
    try:
        result = push_captioner(folder, repo, vision_model="org/clip", text_model="org/text")
    except OSError as error:
        return str(error)
    return "changed" if result.changed else "unchanged"


def try_twice(name, pattern, **what):
    repo = f"org/{name}"
    next_requests(pattern, **what)
    first = push(repo)
    try:
        files = api.list_repo_files(repo)
    except OSError:
        files = None
    found[name] = {"first": first, "met": faults_met(), "files": files, "second": push(repo)}


try_twice("cut-upload", "PUT /storage/")
try_twice("cut", "POST .*/commit/")
try_twice("fault", "POST .*/commit/", status=500)
try_twice("busy", "POST /api/repos/create", status=429, retry_after=0)
try_twice("busy-upload", "POST .*/preupload/", status=429, retry_after=0)


def load_twice(name, pattern, **what):
    next_requests(pattern, **what)
    found[name] = {}
    for attempt in ("first", "second"):
        try:
            model = ITuningForCaptioning.from_pretrained("org/cut", cache_dir=name)
            found[name][attempt] = type(model).__name__
        except OSError as error:
            found[name][attempt] = str(error)
    found[name]["met"] = faults_met()


load_twice("reading", "HEAD .*/config.json", status=503)
load_twice("reading-large", "GET /storage/", status=503)
"""


@pytest.fixture(scope="module")
def found(hub, client, captioners) -> dict[str, Any]:
    return client("writer").run(FAULTS, captioners["a"], package=True)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("cut", "cannot be reached, or broke off"),
        ("fault", "the Hub cannot do it for now (500); try again later."),
    ],
)
def test_of_a_commit_that_fails_nothing_is_visible_and_the_second_try_succeeds(found, name: str, told: str):
    case = found[name]
    assert case["met"] == [f"POST /api/models/org/{name}/commit/main"]
    assert told in case["first"]
    assert "\n" not in case["first"]
    assert case["files"] == [".gitattributes"]
    assert case["second"] == "changed"


def test_a_repository_that_cannot_be_made_for_now_is_told(found):
    case = found["busy"]
    assert "was not pushed to 'org/busy'" in case["first"]
    assert "the Hub cannot do it for now (429); try again later" in case["first"]
    assert (case["files"], case["second"]) == (None, "changed")


@pytest.mark.parametrize("name", ["cut-upload", "busy-upload"])
def test_the_client_tries_uploads_again_by_itself(found, name: str):
    assert len(found[name]["met"]) == 1
    assert (found[name]["first"], found[name]["second"]) == ("changed", "unchanged")


def test_a_download_that_fails_spoils_nothing(found):
    assert len(found["reading"]["met"]) == len(found["reading-large"]["met"]) == 1
    assert found["reading"]["first"] == "ITuningForCaptioning"  # the client asks again
    assert "503 Service Unavailable" in found["reading-large"]["first"]
    assert found["reading-large"]["second"] == "ITuningForCaptioning"
