"""The part of Ollama's interface that captions images: `/api/generate`, `/api/chat`, `/api/tags`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, Field

from .._version import __version__
from ..inference.loading import captioner_digest
from .captioners import Captioner
from .errors import RequestError
from .json_route import BoundedJsonRoute
from .service import CaptionAnswer, CaptionRequest, CaptionService

_LATEST = ":latest"  # the tag that Ollama's clients add to a name without one


class Options(BaseModel):
    """The settings of a search; others have no effect."""

    num_predict: int | None = Field(
        default=None, description="The most tokens; reduced to the server's limit."
    )
    num_beams: int | None = Field(default=None, description="The number of beams; not an option of Ollama's.")


class Request(BaseModel):
    """What the requests for captions have in common. Other fields have no effect."""

    model: str
    stream: bool | None = Field(
        default=None, description="True by default. The words are sent after the search."
    )
    options: Options | None = None


class GenerateRequest(Request):
    """A request for the caption of an image."""

    prompt: str | None = None
    images: list[str] | None = Field(default=None, description="One image in base64.")


class Message(BaseModel):
    """A message of a chat."""

    role: str
    content: str | None = None
    images: list[str] | None = Field(default=None, description="One image in base64.")


class ChatRequest(Request):
    """A request for the caption of an image, in a chat."""

    messages: list[Message]


def make_router(service: CaptionService) -> APIRouter:
    """Return the routes of Ollama's interface."""
    router = APIRouter(prefix="/api", tags=["Ollama's interface"], route_class=BoundedJsonRoute)
    started = _now()
    digests = {name: captioner_digest(captioner.model) for name, captioner in service.captioners.items()}

    async def answer(
        request: Request, prompt: str, images: list[str], content: Callable[[str], dict[str, Any]]
    ) -> Response:
        """Answer in one object or, word by word, in lines; `content` returns the field of a text."""
        start = time.perf_counter_ns()
        if len(images) != 1:
            raise RequestError(422, f"the request has {len(images)} images, expected one in 'images'")
        is_known = request.model in service.captioners
        options = request.options or Options()
        length = options.num_predict
        found = await service.caption(
            CaptionRequest(
                images[0],
                request.model if is_known else request.model.removesuffix(_LATEST),
                prompt=prompt.strip(),
                num_beams=options.num_beams,
                max_new_tokens=None if length is None or length < 0 else length,  # negative is unlimited
                clamp=True,
            )
        )
        about = {"model": request.model, "created_at": _now()}
        end = {"done": True} | _statistics(found, time.perf_counter_ns() - start)
        (caption,) = found.captions
        if request.stream is False:
            return JSONResponse(about | content(caption.text) | end)
        parts = [content(word) | {"done": False} for word in caption.words()]
        lines = [json.dumps(about | part) + "\n" for part in (*parts, content("") | end)]
        return StreamingResponse(lines, media_type="application/x-ndjson")

    @router.post("/generate", summary="Caption an image")
    async def generate(request: GenerateRequest) -> Response:
        return await answer(
            request, request.prompt or "", request.images or [], lambda text: {"response": text}
        )

    @router.post("/chat", summary="Caption an image, as a chat with a model")
    async def chat(request: ChatRequest) -> Response:
        turn: list[Message] = []  # the user messages after all others
        for message in request.messages:
            turn = [*turn, message] if message.role == "user" else []
        prompt = " ".join(message.content.strip() for message in turn if message.content)
        images = [image for message in turn for image in message.images or []]
        return await answer(
            request, prompt, images, lambda text: {"message": {"role": "assistant", "content": text}}
        )

    @router.get("/tags", summary="List the captioners")
    async def tags() -> dict[str, Any]:
        about = {"modified_at": started}
        captioners = service.captioners.values()
        return {
            "models": [_describe(found) | about | {"digest": digests[found.name]} for found in captioners]
        }

    @router.get("/version", summary="The version of ituning_hf")
    async def version() -> dict[str, str]:
        return {"version": __version__}

    return router


def _statistics(answer: CaptionAnswer, nanoseconds: int) -> dict[str, Any]:
    (caption,) = answer.captions
    return {
        "done_reason": caption.finish_reason,
        "total_duration": nanoseconds,
        "load_duration": 0,
        "prompt_eval_count": answer.num_prompt_tokens,
        "prompt_eval_duration": 0,
        "eval_count": caption.num_tokens,
        "eval_duration": nanoseconds,
    }


def _describe(captioner: Captioner) -> dict[str, Any]:
    name = captioner.name if ":" in captioner.name else captioner.name + _LATEST
    parameters = [*captioner.model.parameters()]
    num_parameters = sum(parameter.numel() for parameter in parameters)
    details = {
        "parent_model": "",
        "format": "safetensors",
        "family": "ituning",
        "families": ["ituning"],
        "parameter_size": f"{num_parameters / 1e6:.1f}M",
        "quantization_level": str(captioner.model.dtype).removeprefix("torch."),
    }
    size = sum(parameter.nbytes for parameter in parameters)
    return {"name": name, "model": name, "size": size, "details": details}


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
