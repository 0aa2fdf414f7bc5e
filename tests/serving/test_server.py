"""The server's own interface, its key and its errors."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from small_requests import BOMB, PNG

import ituning_hf
from ituning_hf.serving.captioners import Captioner

Server = Callable[..., TestClient]
SEARCH = {"num_captions": 2, "num_beams": 3, "max_new_tokens": 6}


@pytest.mark.parametrize("name", ["day", "night"])
def test_captions_equal_those_of_caption(server: Server, captioners: dict[str, Captioner], name: str):
    client, captioner = server(), captioners[name]
    for fields in ({}, SEARCH, SEARCH | {"prompt": "a dog"}):
        empty = dict.fromkeys(("prompt", "num_beams"), "")  # as of a form that is not filled in
        expected = ituning_hf.caption(captioner.model, PNG, captioner.processor, **fields)
        expected = {"model": name, "captions": expected if isinstance(expected, list) else [expected]}
        form = client.post("/caption", files={"file": PNG}, data=empty | fields | {"model": name})
        assert (form.status_code, form.json()) == (200, expected)
        query = fields | {"model": name}
        body = client.post("/caption", params=query, content=PNG, headers={"Content-Type": "image/png"})
        assert body.json() == expected


def test_settings_of_the_server(server: Server, captioners: dict[str, Captioner]):
    client = server(num_beams=2, prompt="a dog", max_new_tokens=6)
    day = captioners["day"]
    search = {"num_beams": 2, "prompt": "a dog", "max_new_tokens": 6}
    answer = client.post("/caption", files={"file": PNG}, data={"prompt": "Describe this image!"})
    assert answer.json()["captions"] == [ituning_hf.caption(day.model, PNG, day.processor, **search)]
    assert server(prompt="").post("/caption", files={"file": PNG}, data={"prompt": "a"}).json()[
        "captions"
    ] == [ituning_hf.caption(day.model, PNG, day.processor)]


FORM = {"files": {"file": PNG}}
REFUSED: list[tuple[dict[str, Any], int, str]] = [
    (FORM | {"data": {"model": "noon"}}, 404, "no model 'noon'; the models are day, night"),
    (FORM | {"data": {"num_beams": 11}}, 422, "num_beams is 11, expected 1 to 10"),
    (FORM | {"data": {"num_captions": 6}}, 422, "num_captions is 6, expected 1 to 5, the number of beams"),
    (FORM | {"data": {"num_captions": 0}}, 422, "num_captions is 0, expected 1 to 5"),
    (FORM | {"data": {"max_new_tokens": 49}}, 422, "max_new_tokens is 49, expected 1 to 48"),
    (FORM | {"data": {"max_new_tokens": "many"}}, 422, "max_new_tokens: .* valid integer"),
    (FORM | {"data": {"beams": 2}}, 422, "'beams' is not a field: the optional fields are model, prompt"),
    (FORM | {"data": {"prompt": "a " * 10}}, 422, "exceed the language model's 48 positions"),
    (FORM | {"data": {"prompt": "a" * 2001}}, 422, "2001 characters, expected at most 2000"),
    ({"files": {"image": PNG}}, 422, "no file"),
    ({"files": {"file": PNG, "other": PNG}}, 400, "Too many files"),
    ({"data": {"file": "dog.jpg"}}, 422, "Content-Type is 'application/x-www-form-urlencoded'"),
    ({"files": {"file": b"caption me"}}, 422, "cannot read the image: it is not an image of a supported"),
    ({"files": {"file": b""}}, 422, "cannot read the image: the file is empty"),
    ({"files": {"file": PNG[:200]}}, 422, "cannot read the image: it cannot be decoded"),
    ({"files": {"file": BOMB}}, 413, "cannot read the image: it has more than 50000000 pixels; shrink it"),
    ({"content": bytes(2_000_001)}, 413, "more than 2000000 bytes"),
    ({"content": iter([bytes(10**6)] * 3)}, 413, "more than 2000000 bytes"),
]


def test_refused_requests(server: Server):
    client = server(max_body_mb=2)
    for request, status, reason in REFUSED:
        answer = client.post("/caption", **request)
        assert answer.status_code == status, answer.text
        assert re.search(reason, answer.json()["detail"])
    long = client.post("/caption", files={"file": PNG}, data={"model": "a" * 10**6})
    assert (long.status_code, len(long.json()["detail"])) == (404, 1000)
    for path in ("/api/chat", "/v1/chat/completions"):
        many = client.post(path, json={"model": "day", "messages": [0] * 10_002})
        assert (many.status_code, "more than 10000 commas" in many.text) == (413, True)
    for content in (b"no JSON", b'{"model": "day"}'):  # without Content-Type
        answer = client.post("/api/chat", content=content)
        assert (answer.status_code, "not a JSON object" in answer.json()["error"]) == (422, True)
    answer = client.post("/api/chat", content=b"{]", headers={"Content-Type": "application/json"})
    assert answer.json()["error"].startswith("the body is not JSON: ")
    for path, status, reason in (
        ("/nowhere", 404, "there is no '/nowhere': the interfaces are /caption, /v1"),
        ("/caption", 405, "'/caption' does not take GET requests: see the page /docs"),
    ):
        answer = client.get(path)
        assert (answer.status_code, reason in answer.json()["detail"]) == (status, True)


def test_the_key(server: Server):
    client = server(api_key="schlüssel")
    right, wrong = ({"Authorization": f"Bearer {key}".encode()} for key in ("schlüssel", "schlussel"))
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/openapi.json").json()["components"]["securitySchemes"]
    for path in ("/healthz", "/docs"):
        assert client.post(path).status_code == 401  # it would count as a request in progress
    for path in ("/metrics", "/docs/", "/v1/models", "/api/tags", "/nowhere"):
        for headers in ({}, wrong, {"Authorization": "schlüssel".encode()}):
            refused = client.get(path, headers=headers)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert client.get(path, headers=right).status_code == (404 if path == "/nowhere" else 200)
    assert client.post("/caption", files={"file": PNG}).status_code == 401
    assert client.post("/caption", files={"file": PNG}, headers=right).status_code == 200


def test_other_origins_are_not_allowed(server: Server):
    client, page = server(), {"Origin": "https://other.example", "Access-Control-Request-Method": "POST"}
    for answer in (client.options("/caption", headers=page), client.get("/healthz", headers=page)):
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_metrics(server: Server):
    client = server()
    client.post("/caption", files={"file": PNG}, data=SEARCH)
    client.post("/caption", files={"file": b""})
    for number in range(3):
        client.get(f"/nowhere/{number}")
    text = client.get("/metrics").text
    for line in (
        'ituning_requests_total{path="/caption",status="200"} 1.0',
        'ituning_requests_total{path="/caption",status="422"} 1.0',
        'ituning_requests_total{path="other",status="404"} 3.0',
        'ituning_request_seconds_count{path="/caption"} 2.0',
        "ituning_batch_images_sum 1.0",
        'ituning_captions_total{model="day"} 2.0',
        "ituning_waiting_images 0.0",
    ):
        assert f"{line}\n" in text


def test_a_closed_server_refuses_requests(server: Server):
    client = server()
    client.__exit__(None, None, None)
    answer = client.post("/caption", files={"file": PNG})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_the_api_is_described(server: Server):
    client = server(api_key="secret")  # not needed for the page
    described = client.get("/openapi.json").json()
    assert json.dumps(described["paths"]["/caption"]).count("binary") == 2
    # FastAPI would add the modules to equal names.
    assert not [name for name in described["components"]["schemas"] if "__" in name]
    page = client.get("/").text  # redirects to /docs
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(loaded) == 3
    assert [client.get(path).status_code for path in loaded] == [200] * 3  # from this server
