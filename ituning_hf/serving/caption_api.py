"""`POST /caption`: an image file in, its captions out."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, ValidationError
from starlette.datastructures import UploadFile

from .errors import RequestError
from .service import CaptionRequest, CaptionService


class CaptionFields(BaseModel):
    """The settings of a request, in the query or in the form."""

    model: str | None = Field(default=None, description="The captioner's name; by default the first one.")
    prompt: str | None = Field(default=None, description="The beginning of the captions.")
    num_captions: int = Field(default=1, description="The number of captions, at most num_beams.")
    num_beams: int | None = Field(default=None, description="The number of beams; 1 is greedy search.")
    max_new_tokens: int | None = Field(default=None, description="The most tokens after the prompt.")


class CaptionsOfImage(BaseModel):
    """The captions of an image, the most likely first."""

    model: str
    captions: list[str]


def _request_body() -> dict[str, Any]:
    """Describe the body for OpenAPI: FastAPI cannot derive a form or an image."""
    fields = CaptionFields.model_json_schema()["properties"]
    for field in fields.values():
        field["example"] = field["default"] or ""  # the page /docs would send "string" and 0
    binary = {"type": "string", "format": "binary"}
    form = {"type": "object", "properties": {"file": binary} | fields, "required": ["file"]}
    return {
        "required": True,
        "content": {"multipart/form-data": {"schema": form}, "image/*": {"schema": binary}},
    }


def make_router(service: CaptionService) -> APIRouter:
    """Return the routes of `/caption`."""
    router = APIRouter(tags=["Image files"])

    @router.post("/caption", openapi_extra={"requestBody": _request_body()}, summary="Caption an image file")
    async def caption(request: Request) -> CaptionsOfImage:
        """Caption the form's `file`, with settings in the form; or the body, with settings in the query."""
        values, image = await _read(request)
        known = CaptionFields.model_fields
        if unknown := [name for name in values if name not in known]:
            expected = f"the optional fields are {', '.join(known)}"
            raise RequestError(422, f"{unknown[0]!r} is not a field: {expected}")
        try:
            fields = CaptionFields.model_validate({name: x for name, x in values.items() if x != ""})
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from error
        answer = await service.caption(CaptionRequest(image, **fields.model_dump()))
        return CaptionsOfImage(model=answer.model, captions=[caption.text for caption in answer.captions])

    return router


async def _read(request: Request) -> tuple[dict[str, Any], bytes]:
    """Return the settings and the bytes of the image."""
    content_type = request.headers.get("content-type", "")
    values: dict[str, Any] = dict(request.query_params)
    if content_type.startswith("image/"):
        return values, await request.body()
    if not content_type.startswith("multipart/form-data"):
        expected = "expected multipart/form-data with the image as file, or image/jpeg and others"
        raise RequestError(422, f"the body's Content-Type is {content_type!r}, {expected}")
    async with request.form(max_files=1) as form:
        values |= form
        file = values.pop("file", None)
        if not isinstance(file, UploadFile):
            raise RequestError(422, "the form has no file: send the image as the file named 'file'")
        return values, await file.read()
