"""The Python clients of OpenAI and Ollama, and a running server."""

import base64
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ollama
import openai
import pytest
import uvicorn
from PIL import Image
from small_requests import BOMB, encode

import ituning_hf
from ituning_hf.serving.arguments import ServerArguments
from ituning_hf.serving.captioners import Captioner
from ituning_hf.serving.server import create_app

SEARCH = {"num_beams": 2, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def photograph() -> bytes:
    """A JPEG photograph, as cameras write them: rotated."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(Image.radial_gradient("L").convert("RGB").resize((320, 240)), "JPEG", exif=exif)


@pytest.fixture(scope="module")
def address(captioners: dict[str, Captioner]) -> Iterator[str]:
    """The address of a server with the key "secret"."""
    app = create_app(captioners, ServerArguments(api_key="secret", num_beams=2))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def captions(captioners: dict[str, Captioner], photograph: bytes) -> dict[Any, list[str]]:
    """The two captions of the photograph by captioner and prompt."""
    return {
        (name, prompt): ituning_hf.caption(
            one.model, photograph, one.processor, prompt=prompt, num_captions=2, **SEARCH
        )
        for name, one in captioners.items()
        for prompt in (None, "a dog")
    }


@pytest.fixture(scope="module")
def openai_client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0) as client:
        yield client


def chat(photograph: bytes, text: str | None = None) -> list[Any]:
    url = f"data:image/jpeg;base64,{base64.b64encode(photograph).decode()}"
    parts: list[Any] = [{"type": "image_url", "image_url": {"url": url, "detail": "low"}}]
    parts += [{"type": "text", "text": text}] if text else []
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]


def test_openai(openai_client: openai.OpenAI, photograph: bytes, captions: dict[Any, list[str]]):
    assert [model.id for model in openai_client.models.list()] == ["day", "night"]
    assert openai_client.models.retrieve("night").object == "model"
    create = openai_client.chat.completions.create
    found = create(model="night", messages=chat(photograph), max_tokens=6, temperature=0.7, n=2)
    assert [choice.message.content for choice in found.choices] == captions["night", None]
    as_text = chat(photograph)
    as_text[1]["content"][0]["image_url"] = as_text[1]["content"][0]["image_url"]["url"]
    assert create(model="night", messages=as_text, max_tokens=6, n=2).choices == found.choices
    assert [choice.finish_reason for choice in found.choices] == ["length"] * 2
    assert found.usage.model_dump(include={"prompt_tokens", "completion_tokens", "total_tokens"}) == {
        "prompt_tokens": 0,
        "completion_tokens": 12,
        "total_tokens": 12,
    }
    history = [*chat(photograph), {"role": "assistant", "content": "a cat"}, *chat(photograph, "a dog")]
    found = create(model="day", messages=history, max_completion_tokens=6, extra_body={"num_beams": 2})
    assert found.choices[0].message.content == captions["day", "a dog"][0]
    assert found.usage.prompt_tokens > 1


def test_openai_stream(openai_client: openai.OpenAI, photograph: bytes, captions: dict[Any, list[str]]):
    stream = openai_client.chat.completions.create(
        model="day",
        messages=chat(photograph, "a dog"),
        max_tokens=6,
        n=2,
        stream=True,
        stream_options={"include_usage": True},
    )
    texts, reasons, usage = ["", ""], [], None
    for chunk in stream:
        usage = usage or chunk.usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons += [choice.finish_reason] if choice.finish_reason else []
    assert texts == captions["day", "a dog"]
    assert reasons == ["length"] * 2
    assert usage.completion_tokens == 12


def test_openai_errors(openai_client: openai.OpenAI, address: str, photograph: bytes):
    create = openai_client.chat.completions.create
    one, (system, user) = chat(photograph), chat(photograph)

    def by_url(url: str) -> list[Any]:
        return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]

    refused: list[tuple[Any, dict[str, Any], type[openai.APIStatusError], str]] = [
        (create, {"model": "noon", "messages": one}, openai.NotFoundError, "the models are day, night"),
        (create, {"model": "day", "messages": [system]}, openai.UnprocessableEntityError, "0 images"),
        (create, {"model": "day", "messages": [user, user]}, openai.UnprocessableEntityError, "2 images"),
        (
            create,
            {"model": "day", "messages": by_url("http://a.b/dog.jpg")},
            openai.UnprocessableEntityError,
            "fetches no",
        ),
        (
            create,
            {"model": "day", "messages": chat(b"a text")},
            openai.UnprocessableEntityError,
            "not an image",
        ),
        (create, {"model": "day", "messages": by_url("a\u00e9")}, openai.UnprocessableEntityError, "ASCII"),
        (
            create,
            {"model": "day", "messages": one, "n": 3},
            openai.UnprocessableEntityError,
            "num_captions is 3",
        ),
        (create, {"model": "day", "messages": one, "max_tokens": 0}, openai.UnprocessableEntityError, "is 0"),
        (create, {"model": "day", "messages": "a"}, openai.UnprocessableEntityError, "messages: .* list"),
        (openai_client.models.retrieve, {"model": "noon"}, openai.NotFoundError, "no model 'noon'"),
    ]
    for function, arguments, error, reason in refused:
        with pytest.raises(error, match=reason) as raised:
            function(**arguments)
        assert raised.value.body.keys() == {"message", "type", "param", "code"}
    stranger = openai_client.with_options(api_key="wrong")
    with pytest.raises(openai.AuthenticationError, match="key is missing or wrong"):
        stranger.chat.completions.create(model="day", messages=one)


@pytest.fixture(scope="module")
def ollama_client(address: str) -> Iterator[ollama.Client]:
    with ollama.Client(host=address, headers={"Authorization": "Bearer secret"}) as client:
        yield client


def test_ollama(
    ollama_client: ollama.Client, photograph: bytes, captions: dict[Any, list[str]], tmp_path: Path
):
    (tmp_path / "dog.jpg").write_bytes(photograph)
    listed = ollama_client.list().models
    assert [model.model for model in listed] == ["day:latest", "night:latest"]
    assert listed[0].digest != listed[1].digest
    options = {"num_predict": 6, "temperature": 0.1}
    found = ollama_client.generate("night", images=[tmp_path / "dog.jpg"], options=options)
    assert (found.response, found.done, found.done_reason) == (captions["night", None][0], True, "length")
    assert (found.eval_count, found.prompt_eval_count) == (6, 0)
    messages = [
        {"role": "user", "content": "", "images": [photograph]},
        {"role": "assistant", "content": "a cat"},
        {"role": "user", "content": "a dog", "images": [photograph]},
    ]
    answer = ollama_client.chat("day:latest", messages=messages, options=options)
    assert answer.message.content == captions["day", "a dog"][0]


def test_ollama_stream(ollama_client: ollama.Client, photograph: bytes, captions: dict[Any, list[str]]):
    options = {"num_predict": 6, "num_beams": 2}
    parts = [*ollama_client.generate("day", "a dog", images=[photograph], options=options, stream=True)]
    assert "".join(part.response for part in parts) == captions["day", "a dog"][0]
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    message = {"role": "user", "content": "a dog", "images": [photograph]}
    chats = [*ollama_client.chat("day", [message], options=options, stream=True)]
    assert [chat.message.content for chat in chats] == [part.response for part in parts]
    assert chats[-1].done_reason == "length"


def test_ollama_errors(ollama_client: ollama.Client, address: str, photograph: bytes):
    for status, reason, arguments in (
        (404, "no model 'noon'; the models are day, night", {"model": "noon:latest", "images": [photograph]}),
        (422, "0 images, expected one", {"model": "day", "prompt": "hello"}),
        (413, "more than 50000000 pixels", {"model": "day", "images": [BOMB]}),
        (422, "not an image of a supported format", {"model": "day", "images": [b"a text"]}),
    ):
        with pytest.raises(ollama.ResponseError, match=reason) as raised:
            ollama_client.generate(**arguments)
        assert raised.value.status_code == status
    with (
        ollama.Client(host=address) as stranger,
        pytest.raises(ollama.ResponseError, match="key is missing or wrong"),
    ):
        stranger.list()
