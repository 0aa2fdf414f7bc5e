"""Requests that the handler of an endpoint refuses. test_pushed_code.py has those that it answers."""

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from ituning_hf.hub import handler
from ituning_hf.hub.handler import EndpointHandler

IMAGE = Image.new("RGB", (20, 30), "red")


@pytest.fixture(scope="module")
def endpoint(captioners: dict[str, Path]) -> EndpointHandler:
    return EndpointHandler(str(captioners["a"]))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"temperature": 2}, r"Unknown parameters \['temperature'\]"),
        ({"num_beams": 11}, "num_beams is 11, expected 1 to 10"),
        ({"num_captions": 0}, "num_captions is 0"),
        ({"num_return_sequences": True}, "num_captions is True"),
        ({"max_new_tokens": "9"}, "max_new_tokens is '9', expected 1 to 200"),
        ({"num_captions": 3, "num_beams": 2}, "num_captions is 3, expected at most num_beams, 2"),
        ({"prompt": 7}, "prompt is 7"),
        ({"prompt": "a" * 1001}, "expected up to 1000 characters"),
    ],
)
def test_parameters_are_bounded(endpoint: EndpointHandler, parameters, message: str):
    with pytest.raises(ValueError, match=message):
        endpoint({"inputs": IMAGE, "parameters": parameters})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (None, "inputs has no image"),
        ({"image": "x"}, "inputs has no image"),
        ("http://127.0.0.1/dog.png", "not base64 text"),
        ("/etc/passwd", "not base64 text"),
        (base64.b64encode(b"GIF89a").decode(), "not base64 text or a data URL of an image"),
    ],
)
def test_other_inputs_than_images_are_refused(endpoint: EndpointHandler, inputs, message: str):
    with pytest.raises(ValueError, match=message):
        endpoint({"inputs": inputs})


def test_pixels_are_bounded(endpoint: EndpointHandler, monkeypatch):
    monkeypatch.setattr(handler, "MAX_PIXELS", 599)
    file = io.BytesIO()
    IMAGE.save(file, "PNG")
    with pytest.raises(ValueError, match="it has 20 x 30 pixels"):
        endpoint({"inputs": base64.b64encode(file.getvalue()).decode()})
