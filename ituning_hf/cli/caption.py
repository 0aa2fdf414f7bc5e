"""`ituning caption`: images to captions, a line for each."""

from __future__ import annotations

import glob
import json
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

from ..utils.errors import UserError
from ..utils.rules import AT_LEAST_ONE, NOT_EMPTY, one_of
from ..utils.settings import REQUIRED, Settings, option, read_settings
from ..utils.terminal import printable, quiet_transformers

if TYPE_CHECKING:
    from ..inference.captioning import CaptionResult

_DTYPES = ("auto", "float32", "bfloat16", "float16")
_EXAMPLES = """\
examples:
  ituning caption dog.jpg --model my-captioner
  ituning caption "photos/**/*.png" --model my-captioner --num_captions 3
  find photos -name "*.jpg" -mtime -1 | ituning caption - --model my-captioner \\
      --output captions.jsonl

Each image gives a line: its path, a tab and its caption (a tab and the next
caption, ...). Exit code: 0; 1 if an image could not be read (the others are
captioned); 2 for a mistake in the command; 130 after Ctrl-C.
"""


@dataclass
class CaptionArguments(Settings):
    """The settings of `ituning caption`."""

    paths: ClassVar[frozenset[str]] = frozenset({"model", "vision_model", "text_model", "output"})

    images: list[str] = option(
        REQUIRED,
        "a file, a folder (with its subfolders), a quoted glob, or - for paths on standard input",
        metavar="IMAGE...",
        positional=True,
    )
    model: str = option(REQUIRED, "the captioner's folder or Hub id", NOT_EMPTY, "MODEL")
    revision: str | None = option(None, "the captioner's revision on the Hub", NOT_EMPTY, unset="the newest")
    vision_model: str | None = option(
        None, "another location of its frozen vision encoder", NOT_EMPTY, "MODEL", "as stored"
    )
    text_model: str | None = option(
        None, "another location of its frozen language model", NOT_EMPTY, "MODEL", "as stored"
    )
    num_beams: int | None = option(
        None, "beams of the beam search; 1 is greedy", AT_LEAST_ONE, unset="the captioner's own, or 5"
    )
    max_new_tokens: int | None = option(
        None, "maximum length of a caption, in tokens", AT_LEAST_ONE, unset="the captioner's own"
    )
    num_captions: int = option(1, "captions for each image", AT_LEAST_ONE)
    prompt: str | None = option(None, "text that every caption begins with", metavar="TEXT", unset="no text")
    batch_size: int = option(8, "images in a batch", AT_LEAST_ONE)
    device: str = option(
        "auto", "cpu, cuda, cuda:1 or mps; auto takes the best available", NOT_EMPTY, "DEVICE"
    )
    dtype: str = option("auto", "precision; auto keeps that of the files", one_of(_DTYPES), "|".join(_DTYPES))
    quantization: str | None = option(
        None,
        "quantize the frozen language model's weights: faster on a CPU, and smaller",
        one_of(("int8",)),
        "int8",
        "no quantization",
    )
    output: str | None = option(
        None, "also write a JSON line for each captioned image to this file", NOT_EMPTY, "FILE", "no file"
    )
    overwrite: bool = option(False, "replace the output file if it exists")


def run(argv: Sequence[str]) -> int:
    """Caption the images and return the exit code."""
    args = read_settings(
        CaptionArguments, argv, "ituning caption", "Caption images with a saved captioner.", _EXAMPLES
    )
    from ..inference.captioning import iter_captions
    from ..inference.loading import load_captioner

    sources = _find_sources(args.images)
    output = None if args.output is None else Path(args.output)
    if output is not None and output.exists() and not args.overwrite:
        raise UserError(f"{output} exists: give another --output, or --overwrite to replace it")
    if output is not None and not output.absolute().parent.is_dir():
        raise UserError(f"--output is {str(output)!r}, and there is no folder {output.parent}")
    quiet_transformers()
    model, processor = load_captioner(
        args.model,
        device=None if args.device == "auto" else args.device,
        dtype=None if args.dtype == "auto" else args.dtype,
        quantization=args.quantization,
        revision=args.revision,
        vision_model=args.vision_model,
        text_model=args.text_model,
    )
    results = iter_captions(
        model,
        processor,
        sources,
        prompt=args.prompt,
        num_captions=args.num_captions,
        batch_size=args.batch_size,
        num_beams=args.num_beams,
        max_new_tokens=args.max_new_tokens,
    )
    with _open_output(output, args.overwrite) as file:
        unreadable = _write_results(results, len(sources), file)
    return 1 if unreadable else 0


def _find_sources(arguments: Sequence[str]) -> list[str]:
    """List the images that the arguments name; each must name at least one."""
    from ..data.images import find_images

    sources: list[str] = []
    for argument in arguments:
        if argument == "-":
            # Bytes, as file names are; a line is a path and nothing else.
            lines = (os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer)
            found, expected = [line for line in lines if line], "paths on standard input, one a line"
        elif os.path.isdir(argument):
            found, expected = [str(path) for path in find_images(argument)], "images in that folder"
        elif glob.has_magic(argument) and not os.path.exists(argument):
            found = sorted(path for path in glob.glob(argument, recursive=True) if not os.path.isdir(path))
            expected = "files that match it"
        else:
            found, expected = [argument], "a file"
        if not found:
            raise UserError(f"no images: {argument!r} gave nothing, expected {expected}")
        sources += found
    return sources


def _open_output(path: Path | None, overwrite: bool) -> Any:
    if path is None:
        return nullcontext()
    # A file name that is not UTF-8 holds lone surrogates; "\udc80" is also how JSON writes them.
    return path.open("w" if overwrite else "x", encoding="utf-8", errors="backslashreplace")


def _write_results(results: Iterable[CaptionResult], total: int, output: IO[str] | None) -> int:
    """Write each result at once, and return the number of images that could not be read."""
    from tqdm import tqdm

    unreadable = 0
    with tqdm(total=total, unit="image", disable=not sys.stderr.isatty()) as bar:
        for result in results:
            if result.error is None:
                _write_captions(result, output, bar)
            else:
                unreadable += 1
                bar.write(f"ituning: {result.error}", file=sys.stderr)
            bar.update()
    if unreadable:
        print(f"ituning: {unreadable} of {total} images could not be read", file=sys.stderr)
    return unreadable


def _write_captions(result: CaptionResult, output: IO[str] | None, bar: Any) -> None:
    if output is not None:
        line = json.dumps({"image": result.source, "captions": result.captions}, ensure_ascii=False)
        print(line, file=output, flush=True)  # a crash loses no finished caption
    # A line break or tab would break the line, and a terminal obeys control characters. JSON keeps them.
    texts = [result.source, *(" ".join(caption.split()) for caption in result.captions)]
    bar.write("\t".join(map(printable, texts)), file=sys.stdout)
    sys.stdout.flush()
