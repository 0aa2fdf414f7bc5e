"""Caption a few images with one call, or many with a generator."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from ..data.columns import CaptionedImage
from ..data.images import UnreadableImageError, load_image
from ..utils.devices import default_dtype, usable_device
from ..utils.errors import UserError
from .loading import load_model, load_processor

ImageSource = str | os.PathLike[str] | bytes | Image.Image | CaptionedImage
_SOURCES = (str, os.PathLike, bytes, Image.Image, CaptionedImage)

LOADER_THREADS = 4  # decoding releases the GIL
DEFAULT_NUM_BEAMS = 5


@dataclass(frozen=True)
class CaptionResult:
    """The captions of one image, or the reason why there are none.

    Args:
        source: The image's path, or its index in the sources if it has no path, such as "image 3".
        captions: The captions, the most likely first; empty if the image cannot be read.
        error: One line that says why the image cannot be read.
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
    batch_size: int = 16,
    num_beams: int | None = None,
    max_new_tokens: int | None = None,
    **generate_kwargs: Any,
) -> str | list[str] | list[list[str]]:
    r"""Caption one image or several.

    Args:
        model: A captioner (of the package's class or of the remote code's), or the folder or Hub id of a
            saved captioner, which `load_captioner` then loads.
        images: Paths, bytes of image files, PIL images or images of a dataset; one, or a list of them.
        processor: The captioner's processor. By default it is loaded from the captioner's folder or Hub id.
        prompt: The beginning of the captions: one text for all images, or a list with one for each. It
            should not end with a space, because the token of the next word usually begins with one.
        num_captions: Captions for each image.
        batch_size: Images in a batch.
        num_beams: The number of beams; 1 is greedy search. By default that of the captioner's generation
            configuration, or 5 if that is greedy.
        max_new_tokens: The maximum number of tokens after the prompt. By default that of the captioner.
        **generate_kwargs: Further arguments of `generate`: `do_sample`, `top_p`, `length_penalty` and so on.

    Returns:
        The caption of a single image, or a list of captions in the order of the images. With `num_captions`
        above 1, each image has a list of captions, the most likely first. A caption includes its prompt, and
        has no special tokens and no whitespace at either end.

    Raises:
        UnreadableImageError: An image cannot be read. `iter_captions` continues with the other images.
        UserError: A number is out of range, there are more captions than beams (unless sampling), the
            number of prompts does not match the images, or the captioner has no processor.
        TypeError: An image has another type, or `num_return_sequences` is given.
        OSError: There is no captioner at the given path or Hub id.

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
        raise _wrong_type(images)
    model, processor = with_processor(model, processor)
    results = iter_captions(
        model,
        processor,
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


def with_processor(model: Any, processor: Any) -> tuple[Any, Any]:
    """Return a captioner and its processor, loaded if needed; the arguments are those of `caption`."""
    if isinstance(model, (str, os.PathLike)):
        model = load_model(model, dtype=default_dtype(usable_device(None)))
    commit = getattr(model.config, "_commit_hash", None)  # of a captioner from the Hub
    return model, processor or load_processor(model.name_or_path, commit)


def iter_captions(
    model: Any,
    processor: Any,
    sources: Sequence[ImageSource],
    *,
    prompt: str | Sequence[str] | None = None,
    num_captions: int = 1,
    batch_size: int = 16,
    num_beams: int | None = None,
    max_new_tokens: int | None = None,
    **generate_kwargs: Any,
) -> Generator[CaptionResult, None, None]:
    """Caption many images, yielding the results of each batch as soon as it is done.

    Threads read the next batch while the model captions the current one; at most two batches are in memory.
    An image that cannot be read gives a result with its error, and does not affect other images. The
    arguments are those of `caption`; it raises the same errors for them, before the first image is opened.

    Returns:
        An iterator over one result for each source, in their order.
    """
    # Another sequence may read its images from files: they are not read twice.
    listed = sources if isinstance(sources, list | tuple) else ()
    if wrong := [source for source in listed if not isinstance(source, _SOURCES)]:
        raise _wrong_type(wrong[0])
    options = search_options(model, num_captions, num_beams, max_new_tokens, generate_kwargs)
    _require_positive(batch_size=batch_size)
    if prompt is not None and not isinstance(prompt, str):
        if len(prompt) != len(sources):
            counts = f"{len(prompt)} texts for {len(sources)} images"
            raise UserError(f"prompt has {counts}: give one for all, or one for each.")
        if not all(isinstance(text, str) for text in prompt):
            raise TypeError(
                f"prompt is {prompt!r}, expected texts: give an image without a prompt an empty one."
            )
    return _caption_in_batches(model, processor, sources, prompt, batch_size, options | generate_kwargs)


def search_options(
    model: Any,
    num_captions: int,
    num_beams: int | None,
    max_new_tokens: int | None,
    generate_kwargs: dict[str, Any],
) -> dict[str, Any]:
    """Return the arguments of `generate` for a search; the arguments are those of `caption`.

    Raises:
        UserError: A number is not positive, or there are more captions than beams.
        TypeError: `num_return_sequences` or `return_dict_in_generate` is given.
    """
    for name in {"num_return_sequences", "return_dict_in_generate"} & generate_kwargs.keys():
        raise TypeError(f"{name} is not an option here: use num_captions, or call model.generate for scores.")
    numbers = {"num_captions": num_captions, "num_beams": num_beams, "max_new_tokens": max_new_tokens}
    _require_positive(**{name: number for name, number in numbers.items() if number is not None})
    given = generate_kwargs.get("generation_config")
    settings = given or model.generation_config
    sampling = generate_kwargs.get("do_sample", settings.do_sample)
    if num_beams is None:
        own = settings.num_beams or 1
        num_beams = own if own > 1 or sampling or given is not None else DEFAULT_NUM_BEAMS
    if num_captions > num_beams and not (sampling and num_beams == 1):
        raise UserError(
            f"num_captions is {num_captions} and num_beams {num_beams}: a search returns at most one caption "
            "per beam. Raise num_beams, or sample (do_sample=True, num_beams=1)."
        )
    options = {"num_return_sequences": num_captions, "num_beams": num_beams}
    return options if max_new_tokens is None else options | {"max_new_tokens": max_new_tokens}


def generate_captions(
    model: Any, processor: Any, inputs: dict[str, torch.Tensor], options: dict[str, Any]
) -> list[list[str]]:
    """Caption a batch of prepared images.

    Args:
        model: A captioner; if it is in training mode, it generates in evaluation mode.
        processor: Its processor.
        inputs: `pixel_values` or `visual_features`, and the tokens of prompts, if any; on any device.
        options: The arguments of `generate` that `search_options` returned.

    Returns:
        The captions of each image, the most likely first.
    """
    texts = decode_captions(processor, generate_ids(model, inputs, options))
    n = options["num_return_sequences"]
    return [texts[i : i + n] for i in range(0, len(texts), n)]


def generate_ids(model: Any, inputs: dict[str, torch.Tensor], options: dict[str, Any]) -> torch.Tensor:
    """Generate the token ids of captions; the arguments are those of `generate_captions`.

    Returns:
        Ids of shape (num_images * num_return_sequences, length), which begin with the prompts.
    """
    with evaluation_mode(model):
        return model.generate(**to_device(inputs, model), **options)


def decode_captions(processor: Any, ids: torch.Tensor | list[list[int]]) -> list[str]:
    """Decode captions without special tokens and without whitespace at either end."""
    # Transformers' clean-up would remove the space before a full stop.
    texts = processor.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return [text.strip() for text in texts]


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Turn off training mode, such as dropout."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def to_device(inputs: dict[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    """Move inputs to the model's device."""
    if model.device.type == "meta":  # offloaded: Accelerate moves the inputs
        return inputs
    return {name: tensor.to(model.device) for name, tensor in inputs.items()}


def _require_positive(**numbers: Any) -> None:
    for name, value in numbers.items():
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{name} is {value!r}, expected a positive integer.")


def _wrong_type(images: object) -> TypeError:
    return TypeError(
        f"images has a {type(images).__name__}, expected a path, the bytes of an image file or a PIL image, "
        "or a list of them."
    )


def _caption_in_batches(
    model: Any,
    processor: Any,
    sources: Sequence[ImageSource],
    prompt: str | Sequence[str] | None,
    batch_size: int,
    options: dict[str, Any],
) -> Generator[CaptionResult, None, None]:
    """Caption a batch while threads read the images of the next one."""

    def read(i: int) -> tuple[str, torch.Tensor | None, str | None]:
        """Return a name, and pixel values of shape (1, 3, image_size, image_size) or why there are none."""
        source = sources[i]
        try:
            image = source.load() if isinstance(source, CaptionedImage) else load_image(source)
        except UnreadableImageError as error:
            return _name(source, i), None, str(error)
        return _name(source, i), processor(images=image, return_tensors="pt")["pixel_values"], None

    with ThreadPoolExecutor(LOADER_THREADS, thread_name_prefix="load-image") as pool:

        def submit(start: int) -> dict[int, Future[tuple[str, torch.Tensor | None, str | None]]]:
            return {i: pool.submit(read, i) for i in range(start, min(start + batch_size, len(sources)))}

        following = submit(0)
        for start in range(0, len(sources), batch_size):
            current, following = following, submit(start + batch_size)
            found = {i: future.result() for i, future in current.items()}
            readable = {i: pixels for i, (_, pixels, _) in found.items() if pixels is not None}
            captions: Iterator[list[str]] = iter(())
            if readable:
                inputs = {"pixel_values": torch.cat(list(readable.values()))}
                if prompt is not None:
                    texts = [prompt if isinstance(prompt, str) else prompt[i] for i in readable]
                    inputs |= processor(text=texts, return_tensors="pt")
                captions = iter(generate_captions(model, processor, inputs, options))
            for name, _, error in found.values():
                yield CaptionResult(name, [] if error else next(captions), error)


def _name(source: ImageSource, index: int) -> str:
    if isinstance(source, CaptionedImage):
        return source.name
    if isinstance(source, Image.Image | bytes):
        return str(getattr(source, "filename", "") or f"image {index}")
    return os.fspath(source)
