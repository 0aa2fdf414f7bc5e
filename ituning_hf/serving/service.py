"""Caption the image of a request, within the server's limits."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..inference.captioning import LOADER_THREADS, search_options
from .arguments import ServerArguments
from .batching import Batcher, Caption, Job, Search
from .captioners import Captioner
from .errors import RETRY_AFTER, RequestError
from .fetch import fetch_image, is_url
from .images import prepare_image
from .metrics import Metrics

MAX_PROMPT_CHARACTERS = 2000  # so that tokenizing takes no time


@dataclass(frozen=True)
class CaptionRequest:
    """An image to caption.

    Args:
        image: The bytes of an image file, or their base64 text, with or without a data URL's beginning.
        model: The captioner's name; by default the first one.
        prompt: The beginning of the captions.
        num_captions: The number of captions.
        num_beams: The number of beams; by default that of the server or of the captioner.
        max_new_tokens: The most tokens after the prompt; by default that of the captioner.
        clamp: Whether to reduce a larger `max_new_tokens` to the server's limit, rather than to refuse it.
    """

    image: bytes | str
    model: str | None = None
    prompt: str | None = None
    num_captions: int = 1
    num_beams: int | None = None
    max_new_tokens: int | None = None
    clamp: bool = False


class CaptionAnswer(NamedTuple):
    """The captions, the most likely first, and the number of tokens of the prompt."""

    model: str
    captions: list[Caption]
    num_prompt_tokens: int


class CaptionService:
    """Captioners that requests share.

    Args:
        captioners: The captioners by name; the first is the default.
        settings: The server's settings.
    """

    def __init__(self, captioners: Mapping[str, Captioner], settings: ServerArguments) -> None:
        self.captioners, self.settings = captioners, settings
        self.metrics = Metrics(lambda: self._batcher.num_waiting)
        observe = self.metrics.batch_images.observe
        self._batcher = Batcher(settings.max_batch, settings.max_wait_ms / 1000, observe)
        self._loaders = ThreadPoolExecutor(LOADER_THREADS, thread_name_prefix="load-image")
        # The images of cancelled requests would stay in the queue of the threads.
        self._free_loaders = asyncio.Semaphore(LOADER_THREADS)
        self._is_closed = False

    def close(self) -> None:
        """Finish the accepted requests; later ones are refused."""
        self._is_closed = True
        self._batcher.close()
        self._loaders.shutdown()

    def find(self, name: str | None) -> Captioner:
        """Return a captioner by name, the default one without a name.

        Raises:
            RequestError: There is none of this name.
        """
        if not name:
            return next(iter(self.captioners.values()))
        if name not in self.captioners:
            raise RequestError(
                404, f"there is no model {name!r}; the models are {', '.join(self.captioners)}"
            )
        return self.captioners[name]

    async def caption(self, request: CaptionRequest) -> CaptionAnswer:
        """Caption an image.

        Raises:
            RequestError: The request is outside the limits, or the image cannot be read.
        """
        if self._is_closed:
            raise RequestError(503, "the server is shutting down: try again later", RETRY_AFTER)
        captioner = self.find(request.model)
        search, prompt = self._search(captioner, request), self._prompt(request)
        image = request.image
        if isinstance(image, str) and is_url(image):
            if not self.settings.allow_url:
                advice = "send the image in base64, or start the server with --allow_url"
                raise RequestError(422, f"this server fetches no URLs: {advice}")
            image = await fetch_image(image, self.settings.max_body_bytes)
        loop = asyncio.get_running_loop()
        async with self._free_loaders:
            preparing = loop.run_in_executor(self._loaders, self._prepare, captioner, image, prompt, search)
            try:
                pixel_values, num_prompt_tokens = await asyncio.shield(preparing)
            finally:  # a thread cannot be cancelled
                await asyncio.wait([preparing])
        future = self._batcher.submit(Job(captioner, pixel_values, prompt, search))
        captions = await asyncio.wrap_future(future)
        self.metrics.captions.labels(captioner.name).inc(len(captions))
        return CaptionAnswer(captioner.name, captions, num_prompt_tokens)

    def _prompt(self, request: CaptionRequest) -> str | None:
        """Return the beginning of the captions, if any."""
        prompt = request.prompt if self.settings.prompt is None else self.settings.prompt
        if prompt is not None and len(prompt) > MAX_PROMPT_CHARACTERS:
            problem = f"the prompt has {len(prompt)} characters, expected at most {MAX_PROMPT_CHARACTERS}"
            raise RequestError(422, problem)
        return prompt or None

    def _search(self, captioner: Captioner, request: CaptionRequest) -> Search:
        """Complete the settings of a search, and check them."""
        settings, model = self.settings, captioner.model
        num_beams = request.num_beams
        if num_beams is None:
            default = settings.num_beams or search_options(model, 1, None, None, {})["num_beams"]
            num_beams = min(default, settings.max_beams)
        longest = min(settings.max_new_tokens, model.config.text_config.max_position_embeddings)
        max_new_tokens = request.max_new_tokens
        if max_new_tokens is None:
            max_new_tokens = min(model.generation_config.max_new_tokens or longest, longest)
        elif request.clamp:
            max_new_tokens = min(max_new_tokens, longest)
        _check("num_beams", num_beams, settings.max_beams)
        _check("num_captions", request.num_captions, num_beams, ", the number of beams")
        _check("max_new_tokens", max_new_tokens, longest)
        return Search(request.num_captions, num_beams, max_new_tokens)

    def _prepare(
        self, captioner: Captioner, image: bytes | str, prompt: str | None, search: Search
    ) -> tuple[torch.Tensor, int]:
        """Return pixel values and the number of tokens of the prompt."""
        num_tokens = 0
        if prompt is not None:
            num_tokens = captioner.processor(text=[prompt], return_tensors="pt")["input_ids"].shape[1]
            positions = captioner.model.config.text_config.max_position_embeddings
            if num_tokens + search.max_new_tokens - 1 > positions:  # the last token is never an input
                raise RequestError(
                    422,
                    f"a prompt of {num_tokens} tokens and {search.max_new_tokens} new tokens exceed the "
                    f"language model's {positions} positions: shorten the prompt, or lower max_new_tokens",
                )
        return prepare_image(image, captioner.processor, self.settings.max_pixels), num_tokens


def _check(name: str, value: int, largest: int, meaning: str = "") -> None:
    if not 1 <= value <= largest:
        raise RequestError(422, f"{name} is {value}, expected 1 to {largest}{meaning}")
