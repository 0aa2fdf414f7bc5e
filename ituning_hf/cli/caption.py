"""`ituning caption`: images to captions, a line for each."""

from __future__ import annotations

import argparse
import glob
import json
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..utils.terminal import printable
from .arguments import HelpFormatter, positive

if TYPE_CHECKING:
    from ..inference.captioning import CaptionResult

_EXAMPLES = """\
examples:
  ituning caption dog.jpg --model my-captioner
  ituning caption "photos/**/*.png" --model my-captioner --num_captions 3
  find photos -name "*.jpg" -mtime -1 | ituning caption - --model my-captioner \\
      --output captions.jsonl

Prints a line for each image as its batch is done: path, tab, caption (tab, next caption, ...).
Exit code: 0, or 1 if an image could not be read (the others are captioned), 2 for a mistake in the
command, 130 after Ctrl-C.
"""


def add_parser(commands: Any) -> None:
    """Add the command to those of `ituning`."""
    parser = commands.add_parser(
        "caption",
        help="caption images",
        description="Caption images with a saved captioner.",
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="a file, a folder (with those inside it), a quoted glob, or - for paths on standard input",
    )
    add("--model", required=True, help="a captioner's folder or Hub id")
    add("--revision", help="its revision on the Hub")
    add("--vision_model", help="where its frozen vision encoder has moved to")
    add("--text_model", help="where its frozen language model has moved to")
    add("--num_beams", type=positive, metavar="N", help="beams of the search (the captioner's own, or 5)")
    add("--max_new_tokens", type=positive, metavar="N", help="the longest caption (the captioner's own)")
    add("--num_captions", type=positive, default=1, metavar="N", help="captions for each image (%(default)s)")
    add("--prompt", metavar="TEXT", help="what every caption begins with")
    add("--batch_size", type=positive, default=8, metavar="N", help="images at a time (%(default)s)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps; auto takes the best (%(default)s)")
    add(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="precision; auto keeps that of the files (%(default)s)",
    )
    add(
        "--quantization",
        choices=("int8",),
        help="hold the frozen language model's weights so: quicker on a CPU, and smaller (as they are)",
    )
    add("--output", type=Path, metavar="FILE", help="also write a JSON line for each captioned image")
    add("--overwrite", action="store_true", help="replace the output file if it is there")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Caption the images, and return the exit code."""
    from ..inference.captioning import iter_captions
    from ..inference.loading import load_captioner

    sources = _find_sources(options.images)
    if options.output is not None and options.output.exists() and not options.overwrite:
        raise FileExistsError(f"{options.output} exists: give another --output, or --overwrite to replace it")
    if options.output is not None and not options.output.absolute().parent.is_dir():
        raise FileNotFoundError(f"--output {options.output}: there is no folder {options.output.parent}")
    model, processor = load_captioner(
        options.model,
        device=None if options.device == "auto" else options.device,
        dtype=None if options.dtype == "auto" else options.dtype,
        quantization=options.quantization,
        revision=options.revision,
        vision_model=options.vision_model,
        text_model=options.text_model,
    )
    results = iter_captions(
        model,
        processor,
        sources,
        prompt=options.prompt,
        num_captions=options.num_captions,
        batch_size=options.batch_size,
        num_beams=options.num_beams,
        max_new_tokens=options.max_new_tokens,
    )
    with _open_output(options.output, options.overwrite) as output:
        unreadable = _write_results(results, len(sources), output)
    return 1 if unreadable else 0


def _find_sources(arguments: Sequence[str]) -> list[str]:
    """List the images that the arguments name.

    Raises:
        ValueError: if one of them names none, before long work starts.
    """
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
            raise ValueError(f"no images: {argument!r} gave nothing, expected {expected}")
        sources += found
    return sources


def _open_output(path: Path | None, overwrite: bool) -> Any:
    if path is None:
        return nullcontext()
    # A file name that is not UTF-8 holds lone surrogates; "\udc80" is also how JSON writes them.
    return path.open("w" if overwrite else "x", encoding="utf-8", errors="backslashreplace")


def _write_results(results: Iterable[CaptionResult], total: int, output: IO[str] | None) -> int:
    """Write each result as soon as it is there, and return how many images could not be read."""
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
        print(line, file=output, flush=True)  # a crash loses nothing that was done
    # Line breaks and tabs would break the line, and a terminal obeys others; the JSON file has all as it is.
    texts = [result.source, *(" ".join(caption.split()) for caption in result.captions)]
    bar.write("\t".join(map(printable, texts)), file=sys.stdout)
    sys.stdout.flush()
