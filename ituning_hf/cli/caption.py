"""`ituning caption`: caption images, with one line of output for each."""

from __future__ import annotations

import glob
import json
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, ClassVar

from ..inference.arguments import CaptionerArguments
from ..utils.errors import UserError
from ..utils.rules import AT_LEAST_ONE, FILE, MODEL, NAME, TEXT
from ..utils.settings import REQUIRED, Settings, option, read_settings
from ..utils.terminal import printable, quiet_transformers

if TYPE_CHECKING:
    from ..inference.captioning import CaptionResult

_EXAMPLES = """\
examples:
  ituning caption dog.jpg --model my-captioner
  ituning caption "photos/**/*.png" --model my-captioner --num_captions 3
  find photos -name "*.jpg" -mtime -1 | ituning caption - --model my-captioner \\
      --output captions.jsonl

Each image gives a line: its path, a tab and its caption (a tab and the next
caption, ...). Exit code: 0; 1 if an image could not be read (the others are
captioned); 2 for an error in the command; 130 after Ctrl-C.
"""


@dataclass(kw_only=True)  # allows required fields after fields with defaults
class CaptionArguments(CaptionerArguments, Settings):
    """The settings of `ituning caption`."""

    title: ClassVar[str] = Settings.title

    model: str = option(REQUIRED, "the captioner's folder or Hub id", MODEL)
    images: list[str] = option(
        REQUIRED,
        "a file, a folder (with its subfolders), a quoted glob, or - for paths on standard input",
        metavar="IMAGE...",
        positional=True,
    )
    num_captions: int = option(1, "captions for each image", AT_LEAST_ONE)
    prompt: str | None = option(None, "text that every caption begins with", TEXT, "no text")
    device: str | None = option(None, "cpu, cuda, cuda:1 or mps", NAME, "the best available")
    output: str | None = option(
        None, "also write a JSON line for each captioned image to this file", FILE, "no file"
    )
    overwrite: bool = option(False, "replace the output file if it exists")


def run(argv: Sequence[str]) -> int:
    """Caption the images and return the exit code."""
    args = read_settings(
        CaptionArguments, argv, "ituning caption", "Caption images with a saved captioner.", _EXAMPLES
    )
    sources = _find_sources(args.images)
    output = None if args.output is None else Path(args.output)
    if output is not None and output.exists() and not args.overwrite:
        raise UserError(f"{output} exists: give another --output, or --overwrite to replace it")
    if output is not None and not output.absolute().parent.is_dir():
        raise UserError(f"--output is {str(output)!r}, and there is no folder {output.parent}")
    from ..inference.captioning import iter_captions

    quiet_transformers()
    model, processor = args.load_captioner(args.device)
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
    # A file name that is not UTF-8 contains lone surrogates, which JSON also escapes as "\udc80".
    mode = "w" if args.overwrite else "x"
    file = None if output is None else output.open(mode, encoding="utf-8", errors="backslashreplace")
    with file or nullcontext() as lines:
        unreadable = _write(results, len(sources), lines)
    if unreadable:
        print(f"ituning: {unreadable} of {len(sources)} images could not be read", file=sys.stderr)
    return 1 if unreadable else 0


def _find_sources(arguments: Sequence[str]) -> list[str]:
    """List the images that the arguments select; each must select at least one."""
    from ..data.images import find_images

    sources: list[str] = []
    for argument in arguments:
        if argument == "-":
            # Bytes, as file names are; a line is a path and nothing else.
            lines = (os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer)
            found = [line for line in lines if line]
        elif os.path.isdir(argument):
            found = [str(path) for path in find_images(argument)]
        elif os.path.lexists(argument):
            found = [argument]
        else:
            found = sorted(path for path in glob.glob(argument, recursive=True) if not os.path.isdir(path))
        if not found:
            raise UserError(
                f"{argument!r} gives no images: name a file, a folder of images, a glob with matches, "
                "or - with paths on standard input"
            )
        sources += found
    return sources


def _write(results: Iterable[CaptionResult], total: int, output: IO[str] | None) -> int:
    """Write each result at once, and return the number of images that could not be read."""
    from tqdm import tqdm

    unreadable = 0
    with tqdm(total=total, unit="image", disable=not sys.stderr.isatty()) as bar:
        for result in results:
            bar.update()
            if result.error is not None:
                unreadable += 1
                bar.write(f"ituning: {result.error}", file=sys.stderr)
                continue
            if output is not None:
                line = json.dumps({"image": result.source, "captions": result.captions}, ensure_ascii=False)
                print(line, file=output, flush=True)  # so a crash does not lose finished captions
            # A line break or tab would break the format, and terminals interpret control characters.
            texts = [result.source, *(" ".join(caption.split()) for caption in result.captions)]
            bar.write("\t".join(map(printable, texts)), file=sys.stdout)
            sys.stdout.flush()
    return unreadable
