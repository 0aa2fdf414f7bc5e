"""The part of OpenAI's interface that captions images: `/v1/chat/completions` and `/v1/models`."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, Field

from .errors import RequestError
from .json_route import BoundedJsonRoute
from .service import CaptionAnswer, CaptionRequest, CaptionService


class TextPart(BaseModel):
    """A text in a message."""

    type: Literal["text"]
    text: str


class ImageUrl(BaseModel):
    """The address of an image."""

    url: str


class ImagePart(BaseModel):
    """An image in a message."""

    type: Literal["image_url"]
    image_url: ImageUrl | str  # the text alone: as clients of Ollama's OpenAI interface send it

    @property
    def url(self) -> str:
        """The address."""
        return self.image_url if isinstance(self.image_url, str) else self.image_url.url


class ChatMessage(BaseModel):
    """A message of a chat."""

    role: str
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]] | None = None

    def parts(self) -> list[TextPart | ImagePart]:
        """Return the content as parts."""
        if isinstance(self.content, str):
            return [TextPart(type="text", text=self.content)]
        return [*(self.content or [])]


class StreamOptions(BaseModel):
    """The settings of a streamed answer."""

    include_usage: bool = False


class ChatCompletionRequest(BaseModel):
    """A request for captions. Other fields, such as temperature, have no effect on beam search."""

    model: str
    messages: list[ChatMessage]
    n: int | None = None
    max_tokens: int | None = Field(default=None, description="Reduced to the server's limit.")
    max_completion_tokens: int | None = Field(default=None, description="The newer name of max_tokens.")
    num_beams: int | None = Field(default=None, description="The number of beams; not a field of OpenAI's.")
    stream: bool | None = Field(default=None, description="The words are sent after the search, one by one.")
    stream_options: StreamOptions | None = None

    def to_caption_request(self) -> CaptionRequest:
        """Return the image and the settings of the last turn: the user messages after all others.

        Raises:
            RequestError: It has no image, or several.
        """
        parts: list[TextPart | ImagePart] = []
        for message in self.messages:
            parts = parts + message.parts() if message.role == "user" else []
        images = [part.url for part in parts if isinstance(part, ImagePart)]
        if len(images) != 1:
            raise RequestError(
                422, f"the last user message has {len(images)} images, expected one part of type image_url"
            )
        return CaptionRequest(
            images[0],
            self.model,
            prompt=" ".join(part.text.strip() for part in parts if isinstance(part, TextPart)).strip(),
            num_captions=1 if self.n is None else self.n,
            num_beams=self.num_beams,
            max_new_tokens=self.max_tokens
            if self.max_completion_tokens is None
            else self.max_completion_tokens,
            clamp=True,
        )


def make_router(service: CaptionService) -> APIRouter:
    """Return the routes of OpenAI's interface."""
    router = APIRouter(prefix="/v1", tags=["OpenAI's interface"], route_class=BoundedJsonRoute)
    started = int(time.time())

    @router.post("/chat/completions", summary="Caption an image, as a chat with a model")
    async def complete(request: ChatCompletionRequest) -> Response:
        answer = await service.caption(request.to_caption_request())
        about = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": answer.model}
        if not request.stream:
            return JSONResponse(about | {"object": "chat.completion"} | _completion(answer))
        with_usage = request.stream_options is not None and request.stream_options.include_usage
        about |= {"object": "chat.completion.chunk"}
        events = (f"data: {json.dumps(about | chunk)}\n\n" for chunk in _chunks(answer, with_usage))
        return StreamingResponse((*events, "data: [DONE]\n\n"), media_type="text/event-stream")

    def describe(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": started, "owned_by": "ituning_hf"}

    @router.get("/models", summary="List the captioners")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [*map(describe, service.captioners)]}

    @router.get("/models/{model:path}", summary="Describe a captioner")
    async def model(model: str) -> dict[str, Any]:
        return describe(service.find(model).name)

    return router


def _completion(answer: CaptionAnswer) -> dict[str, Any]:
    choices = [
        {
            "index": i,
            "message": {"role": "assistant", "content": caption.text, "refusal": None},
            "logprobs": None,
            "finish_reason": caption.finish_reason,
        }
        for i, caption in enumerate(answer.captions)
    ]
    return {"choices": choices, "usage": _usage(answer)}


def _chunks(answer: CaptionAnswer, with_usage: bool) -> Iterator[dict[str, Any]]:
    def chunk(index: int, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {"choices": [choice]} | ({"usage": None} if with_usage else {})

    for i, caption in enumerate(answer.captions):
        yield chunk(i, {"role": "assistant", "content": ""})
        yield from (chunk(i, {"content": word}) for word in caption.words())
        yield chunk(i, {}, caption.finish_reason)
    if with_usage:
        yield {"choices": [], "usage": _usage(answer)}


def _usage(answer: CaptionAnswer) -> dict[str, int]:
    generated = sum(caption.num_tokens for caption in answer.captions)
    prompt = answer.num_prompt_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
    }
