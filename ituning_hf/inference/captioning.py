"""Captions for images: one call for a few, a generator for many."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from ..data.images import UnreadableImageError, load_image
from ..inference.loading import load_model, load_processor

ImageSource = str | os.PathLike[str] | bytes | Image.Image
_SOURCES = (str, os.PathLike, bytes, Image.Image)

# Decoding lets go of Python's lock, so a few threads keep ahead of generation. Each holds one image in
# full size; what waits for its batch is already cut to the encoder's.
LOADER_THREADS = 4
DEFAULT_NUM_BEAMS = 5


@dataclass(frozen=True)
class CaptionResult:
    """What became of one image.

    Args:
        source: The image's path, or "image 3" for one of no file, fourth of the sources.
        captions: Its captions, the most likely first; none if the image could not be read.
        error: Why it could not be read, in one line.
    """

    source: str
    captions: list[str]
    error: str | None = None


def caption(
    model: Any,
    images: ImageSource | Sequence[ImageSource],
    processor: Any = None,
    *,
    prompt: str | Sequence[str] | None = None,
    num_captions: int = 1,
    batch_size: int = 8,
    num_beams: int | None = None,
    max_new_tokens: int | None = None,
    **generate_kwargs: Any,
) -> str | list[str] | list[list[str]]:
    r"""Caption one image or several.

    Args:
        model: A captioner (the package's class or the one that remote code brought), or the folder or Hub
            id of a saved one, which is then loaded as `load_captioner` does.
        images: Paths, files' bytes or PIL images; one, or a list of them.
        processor: The captioner's processor. By default the one that was saved beside it.
        prompt: What captions begin with: one text for all images, or a list of one for each. Best without
            a space at its end, since GPT-2's words bring their own.
        num_captions: Captions for each image.
        batch_size: Images that are captioned at a time.
        num_beams: Beams of the search; 1 is greedy. By default what the captioner's own settings say, and
            5 where they ask for no search.
        max_new_tokens: The longest caption, in tokens after the prompt; by default the captioner's own.
        **generate_kwargs: For `generate`: `do_sample`, `top_p`, `length_penalty` and the like.

    Returns:
        For a single image its caption, for a list the captions in its order; with `num_captions` above 1,
        a list for each image, the most likely first. A caption includes its prompt. It has no special
        tokens and no whitespace at its ends.

    Raises:
        UnreadableImageError: for the first image that cannot be read. To caption the others all the
            same, use `iter_captions`.
        ValueError: for numbers out of range, more captions than beams (unless sampling), prompts that
            are not one per image, or a captioner without a processor.
        TypeError: for images or prompts of another kind, or `num_return_sequences`.
        OSError: if there is no captioner at the given place.

    Example:
    ```python
    >>> import ituning_hf
    >>> ituning_hf.caption("my-captioner", "dog.jpg")  # doctest: +SKIP
    'a brown dog runs across the grass'
    >>> model, processor = ituning_hf.load_captioner("my-captioner")  # doctest: +SKIP
    >>> ituning_hf.caption(model, ["dog.jpg", "bike.jpg"], processor, prompt="a photo of")  # doctest: +SKIP
    ['a photo of a dog running', 'a photo of a man on a bike']

    ```
    """
    single = isinstance(images, _SOURCES)
    if not single and not isinstance(images, Sequence):
        raise _wrong_images(images)
    if isinstance(model, (str, os.PathLike)):
        model = load_model(model)
    results = iter_captions(
        model,
        processor or load_processor(model.name_or_path),
        [images] if single else images,  # type: ignore[arg-type, list-item]
        prompt=prompt,
        num_captions=num_captions,
        batch_size=batch_size,
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        **generate_kwargs,
    )
    captions: list[Any] = []
    for result in results:
        if result.error is not None:
            raise UnreadableImageError(result.error)
        captions.append(result.captions if num_captions > 1 else result.captions[0])
    return captions[0] if single else captions


def iter_captions(
    model: Any,
    processor: Any,
    sources: Sequence[ImageSource],
    *,
    prompt: str | Sequence[str] | None = None,
    num_captions: int = 1,
    batch_size: int = 8,
    num_beams: int | None = None,
    max_new_tokens: int | None = None,
    **generate_kwargs: Any,
) -> Iterator[CaptionResult]:
    """Caption many images, giving the results of each batch as soon as it is done.

    Images are decoded in threads, one batch ahead of the one that is being captioned, so that the device
    does not wait for files; no more than two batches are held, whatever the number of sources. An image
    that cannot be read gives a result with its error, and harms no other.

    Args:
        model: A captioner.
        processor: Its processor.
        sources: Paths, files' bytes or PIL images.
        prompt: As for `caption`, like the arguments that follow it.
        num_captions: Captions for each image.
        batch_size: Images that are captioned at a time.
        num_beams: Beams of the search; 1 is greedy. By default what the captioner's own settings say, and
            5 where they ask for no search.
        max_new_tokens: The longest caption, in tokens after the prompt; by default the captioner's own.
        **generate_kwargs: For `generate`.

    Returns:
        An iterator over one result for each source, in their order.

    Raises:
        ValueError, TypeError: as in `caption`; at the call, before the first image is opened.
    """
    if wrong := [source for source in sources if not isinstance(source, _SOURCES)]:
        raise _wrong_images(wrong[0])
    options = search_options(model, num_captions, num_beams, max_new_tokens, generate_kwargs)
    _require_positive(batch_size=batch_size)
    prompts = _one_prompt_per_image(prompt, len(sources))
    batches = _prepared_batches(processor, sources, prompts, batch_size)
    return (
        result
        for batch in batches
        for result in _caption_batch(model, processor, batch, options | generate_kwargs)
    )


def search_options(
    model: Any,
    num_captions: int,
    num_beams: int | None,
    max_new_tokens: int | None,
    generate_kwargs: dict[str, Any],
) -> dict[str, Any]:
    """Settle what a caller left open by the generation settings, the given or the captioner's own.

    Args:
        model: A captioner.
        num_captions: As for `caption`, like the arguments that follow it.
        num_beams: Beams of the search.
        max_new_tokens: The longest caption, in tokens.
        generate_kwargs: What else `generate` is to get.

    Returns:
        Arguments of `generate`.

    Raises:
        ValueError: for numbers that are not positive, or more captions than beams.
        TypeError: for `num_return_sequences`.
    """
    if "num_return_sequences" in generate_kwargs:
        raise TypeError("num_return_sequences is called num_captions here: caption(..., num_captions=3).")
    wanted = {"num_captions": num_captions, "num_beams": num_beams, "max_new_tokens": max_new_tokens}
    _require_positive(**{name: value for name, value in wanted.items() if value is not None})
    given = generate_kwargs.get("generation_config")
    settings = given or model.generation_config
    sampling = generate_kwargs.get("do_sample", settings.do_sample)
    if num_beams is None:
        own = settings.num_beams or 1
        num_beams = own if own > 1 or sampling or given is not None else DEFAULT_NUM_BEAMS
    if num_captions > num_beams and not (sampling and num_beams == 1):
        raise ValueError(
            f"num_captions is {num_captions} and num_beams {num_beams}: a search gives as many captions as "
            "it has beams, so raise num_beams (or sample: do_sample=True, num_beams=1)."
        )
    options = {"num_return_sequences": num_captions, "num_beams": num_beams}
    return options if max_new_tokens is None else options | {"max_new_tokens": max_new_tokens}


def _require_positive(**numbers: Any) -> None:
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}, expected a positive integer.")


def _wrong_images(given: object) -> TypeError:
    return TypeError(
        f"images has a {type(given).__name__}, expected a path, a file's bytes or a PIL image, or a list of "
        "them."
    )


def _one_prompt_per_image(prompt: str | Sequence[str] | None, num_images: int) -> list[str] | None:
    if prompt is None:
        return None
    if not isinstance(prompt, Sequence):
        raise TypeError(f"prompt is {prompt!r}, expected a text, or a list of one for each image.")
    prompts = [prompt] * num_images if isinstance(prompt, str) else list(prompt)
    if len(prompts) != num_images:
        raise ValueError(
            f"prompt has {len(prompts)} texts for {num_images} images: give one text for all, or one each."
        )
    return prompts


@dataclass(frozen=True)
class _PreparedImage:
    source: str
    prompt: str | None
    pixel_values: torch.Tensor | None = None  # of shape (1, 3, image_size, image_size)
    error: str | None = None


def _prepared_batches(
    processor: Any, sources: Sequence[ImageSource], prompts: Sequence[str] | None, batch_size: int
) -> Iterator[list[_PreparedImage]]:
    """Decode one batch ahead of the one that was asked for."""
    pool = ThreadPoolExecutor(LOADER_THREADS, thread_name_prefix="load-image")

    def prepare(i: int) -> _PreparedImage:
        name = _name(sources[i], i)
        prompt = prompts[i] if prompts else None
        try:
            image = load_image(sources[i])
        except UnreadableImageError as error:
            return _PreparedImage(name, prompt, error=str(error))
        pixel_values = processor(images=image, return_tensors="pt")["pixel_values"]
        return _PreparedImage(name, prompt, pixel_values)

    def submit(start: int) -> list[Any]:
        return [pool.submit(prepare, i) for i in range(start, min(start + batch_size, len(sources)))]

    try:
        following = submit(0)
        for start in range(0, len(sources), batch_size):
            current, following = following, submit(start + batch_size)
            yield [future.result() for future in current]
    finally:  # also where the caller stopped early
        pool.shutdown(cancel_futures=True)


def _name(source: ImageSource, index: int) -> str:
    if isinstance(source, Image.Image | bytes):
        return str(getattr(source, "filename", "") or f"image {index}")
    return os.fspath(source)


def _caption_batch(
    model: Any, processor: Any, batch: Sequence[_PreparedImage], options: dict[str, Any]
) -> Iterator[CaptionResult]:
    readable = [image for image in batch if image.pixel_values is not None]
    captions = iter(_generate(model, processor, readable, options) if readable else [])
    for image in batch:
        own = [] if image.pixel_values is None else next(captions)
        yield CaptionResult(image.source, own, image.error)


def _generate(
    model: Any, processor: Any, images: Sequence[_PreparedImage], options: dict[str, Any]
) -> list[list[str]]:
    """Return the captions of each image."""
    inputs = {"pixel_values": torch.cat([image.pixel_values for image in images])}  # type: ignore[misc]
    if images[0].prompt is not None:
        inputs |= processor(text=[image.prompt for image in images], return_tensors="pt")
    return generate_captions(model, processor, inputs, options)


def generate_captions(
    model: Any, processor: Any, inputs: dict[str, torch.Tensor], options: dict[str, Any]
) -> list[list[str]]:
    """Caption a batch of prepared images.

    Args:
        model: A captioner.
        processor: Its processor.
        inputs: `pixel_values` or `visual_features`, and a prompt where there is one; on any device.
        options: Of the search, as `search_options` gives them.

    Returns:
        The captions of each image, the most likely first.
    """
    inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    training = model.training
    if training:  # captions may be looked at in the midst of it, without its dropout
        model.eval()
    try:
        ids = model.generate(**inputs, **options)
    finally:
        if training:
            model.train()
    # As they stand: Transformers' clean-up would take out the space before a full stop.
    texts = processor.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    texts, n = [text.strip() for text in texts], options["num_return_sequences"]
    return [texts[i : i + n] for i in range(0, len(texts), n)]


__all__ = ["CaptionResult", "caption", "generate_captions", "iter_captions", "search_options"]
