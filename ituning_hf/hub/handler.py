"""Captions images on Hugging Face Inference Endpoints, which load this file from the captioner's repository.

It needs Transformers and the other files of the repository only. The body of a request is an image, or JSON:

    {"inputs": "<an image file in base64, or its data URL>", "parameters": {"num_captions": 3}}
"""

from __future__ import annotations

import base64
import io
from typing import Any

import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")
MAX_PIXELS = 50_000_000
MAX_PROMPT_CHARACTERS = 1000
LIMITS = {"num_beams": 10, "num_captions": 10, "max_new_tokens": 200}


class EndpointHandler:
    """A captioner behind an endpoint.

    Args:
        path: The folder with the files of the repository.
    """

    def __init__(self, path: str = "") -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.float32 if device == "cpu" else None  # None: that of the files
        self.model = AutoModel.from_pretrained(path, trust_remote_code=True, dtype=dtype).to(device)
        self.processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)

    def __call__(self, data: dict[str, Any]) -> list[dict[str, str]]:
        """Caption an image.

        Args:
            data: "inputs": a PIL image, or base64 text or a data URL. "parameters", optional: `num_beams` (by
                default the captioner's own, or 5), `num_captions` or `num_return_sequences` (1),
                `max_new_tokens` (the captioner's own) and `prompt`, the beginning of the captions.

        Returns:
            A dictionary with "generated_text" for each caption, the most likely first.

        Raises:
            ValueError: The image cannot be read, or a parameter is unknown or out of range. The endpoint
                answers with status 400 and the message.
        """
        options, prompt = self._read_parameters(data.get("parameters") or {})
        inputs = self.processor(images=read_image(data.get("inputs")))
        if prompt is not None:
            inputs |= self.processor(text=prompt)
        inputs = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
        ids = self.model.generate(**inputs, **options)
        # Transformers' clean-up would remove the space before a full stop.
        texts = self.processor.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [{"generated_text": text.strip()} for text in texts]

    def _read_parameters(self, given: dict[str, Any]) -> tuple[dict[str, int], str | None]:
        """Return the options of `generate`, and the prompt."""
        given = dict(given)
        if "num_return_sequences" in given:
            given["num_captions"] = given.pop("num_return_sequences")
        prompt = given.pop("prompt", None)
        if not (prompt is None or isinstance(prompt, str)) or len(prompt or "") > MAX_PROMPT_CHARACTERS:
            raise ValueError(f"prompt is {prompt!r:.50}, expected up to {MAX_PROMPT_CHARACTERS} characters.")
        if unknown := given.keys() - LIMITS:
            raise ValueError(f"Unknown parameters {sorted(unknown)}, expected {[*LIMITS, 'prompt']}.")
        for name, value in given.items():
            if type(value) is not int or not 1 <= value <= LIMITS[name]:
                raise ValueError(f"{name} is {value!r:.50}, expected 1 to {LIMITS[name]}.")
        num_captions = given.pop("num_captions", 1)
        own = self.model.generation_config.num_beams or 1
        num_beams = given.pop("num_beams", own if own > 1 else 5)
        if num_captions > num_beams:
            raise ValueError(f"num_captions is {num_captions}, expected at most num_beams, {num_beams}.")
        return given | {"num_beams": num_beams, "num_return_sequences": num_captions}, prompt


def read_image(inputs: Any) -> Image.Image:
    """Return the image of a request; nothing is downloaded.

    Raises:
        ValueError: It is not an image of a known format, or has too many pixels.
    """
    if isinstance(inputs, Image.Image):
        return inputs
    if not isinstance(inputs, str):
        raise ValueError("inputs has no image: send an image file, or JSON with its base64 text in inputs.")
    try:
        data = base64.b64decode(inputs.rpartition("base64,")[2], validate=True)
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"it has {image.width} x {image.height} pixels, at most {MAX_PIXELS:,} are read")
        image.load()
    # Decoders raise OSError, SyntaxError, struct.error and others on malformed input.
    except Exception as error:
        raise ValueError(f"inputs is not base64 text or a data URL of an image: {error}") from error
    return image
