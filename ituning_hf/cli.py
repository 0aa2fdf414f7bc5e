"""The `ituning` command: see a demo, train a captioner, caption images with it, look at what was saved.

Nothing heavy is imported here: each sub-command brings what it needs, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import glob
import io
import json
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .captioning import CaptionResult

_EXAMPLES = """\
examples:
  ituning demo
  ituning train --dataset photos/ --vision_model openai/clip-vit-base-patch16 --text_model gpt2 \\
      --output_dir my-captioner
  ituning caption photos/ --model my-captioner/best --output captions.jsonl
  ituning info my-captioner/best

Mistakes are told in one line. With ITUNING_TRACEBACK=1 in the environment, with the whole traceback.
"""

_CAPTION_EXAMPLES = """\
examples:
  ituning caption dog.jpg --model my-captioner
  ituning caption "photos/**/*.png" --model my-captioner --num-captions 3
  find photos -name "*.jpg" -mtime -1 | ituning caption - --model my-captioner --output captions.jsonl

Prints a line for each image as its batch is done: path, tab, caption (tab, next caption, ...).
Exit code: 0, or 1 if an image could not be read (the others are captioned), 2 for a mistake in the
command, 130 after Ctrl-C.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `ituning` command.

    Args:
        argv: Its arguments; those of the process by default.

    Returns:
        The exit code: 0, or 1 where an image could not be read or training failed on its way, 2 for a
        mistake of the user's, 130 after Ctrl-C, 141 when whoever read the output has gone.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # a terminal may not know every letter of a caption or a name
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError):  # it flushes first, and what is there may not be written
                stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(arguments)
        if sys.stdout is not None:  # closed by whoever started this
            sys.stdout.flush()  # here, where a reader that has gone can still be met
    except KeyboardInterrupt as stopped:
        print("ituning:", str(stopped) or "interrupted", file=sys.stderr)
        return getattr(stopped, "exit_code", 130)
    except BrokenPipeError:  # ituning ... | head
        # Python flushes once more at exit, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if os.environ.get("ITUNING_TRACEBACK") or not _is_foreseen(error):
            raise
        print("ituning: error:", " ".join(str(error).splitlines()), file=sys.stderr)
        return 1 if isinstance(error, RuntimeError) else 2
    return code


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["train"]:  # its options, --help among them, are the trainer's own
        return _train(arguments[1:])
    options = _parser().parse_args(arguments)
    _silence_transformers()
    return options.run(options)


def _train(arguments: list[str]) -> int:
    from .training.cli import main as train

    return train(arguments)


def _is_foreseen(error: Exception) -> bool:
    """Tell whether an error is told well by its own message; a traceback is for faults of ours."""
    if isinstance(error, RuntimeError):
        from .training.errors import TrainingError  # a run that was sound when it began

        return isinstance(error, TrainingError)
    return isinstance(error, (OSError, ValueError)) or type(error) is ImportError  # not a missing module


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ituning",
        description="Train a small image captioner between a frozen CLIP and a frozen GPT-2, and use it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ituning {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo_command(commands)
    commands.add_parser("train", help="train a captioner (ituning train --help shows its options)")
    _add_caption_command(commands)
    info = commands.add_parser(
        "info",
        help="say what a saved captioner is",
        description="Say what a saved captioner is, without loading it.",
    )
    info.add_argument("model", metavar="MODEL", help="a captioner's folder or Hub id")
    info.add_argument("--revision", help="its revision on the Hub")
    info.add_argument("--json", action="store_true", help="print JSON")
    info.set_defaults(run=_info)
    return parser


def _add_demo_command(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="train and try a captioner of drawn scenes, in minutes, with nothing to download",
        description="Train adapters between two small frozen models on drawn scenes, caption scenes that "
        "they have not seen, save the captioner and load it again. Minutes on two CPU cores; no network.",
    )
    parser.add_argument(
        "--output-dir",
        "--output_dir",
        type=Path,
        default=Path("ituning-demo"),
        metavar="FOLDER",
        help="gets the captioner, the pictures and a page that shows them (%(default)s)",
    )
    parser.add_argument("--seed", type=_natural, default=0, metavar="N", help="another run (%(default)s)")
    parser.set_defaults(run=_demo)


def _add_caption_command(commands: Any) -> None:
    parser = commands.add_parser(
        "caption",
        help="caption images",
        description="Caption images with a saved captioner.",
        epilog=_CAPTION_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    add("--vision-model", help="where its frozen vision encoder has moved to")
    add("--text-model", help="where its frozen language model has moved to")
    add("--num-beams", type=_positive, metavar="N", help="beams of the search (the captioner's own, or 5)")
    add("--max-new-tokens", type=_positive, metavar="N", help="the longest caption (the captioner's own)")
    add(
        "--num-captions", type=_positive, default=1, metavar="N", help="captions for each image (%(default)s)"
    )
    add("--prompt", metavar="TEXT", help="what every caption begins with")
    add("--batch-size", type=_positive, default=8, metavar="N", help="images at a time (%(default)s)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps; auto takes the best (%(default)s)")
    add(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="precision; auto keeps that of the files (%(default)s)",
    )
    add("--output", type=Path, metavar="FILE", help="also write a JSON line for each captioned image")
    add("--overwrite", action="store_true", help="replace the output file if it is there")
    parser.set_defaults(run=_caption)


def _silence_transformers() -> None:
    """Keep load bars and advice off the terminal; what goes wrong is an error anyway."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _info(options: argparse.Namespace) -> int:
    from .inspection import describe, format_description

    description = describe(options.model, revision=options.revision)
    print(json.dumps(description, indent=2) if options.json else format_description(description))
    return 0


def _demo(options: argparse.Namespace) -> int:
    from .demo import run_demo
    from .training.errors import RunStopped

    try:
        result = run_demo(options.output_dir, seed=options.seed)
    except RunStopped as stopped:
        print(f"ituning: {stopped}: the same command goes on", file=sys.stderr)
        return stopped.exit_code
    return 0 if result.same_in_fresh_process else 1


def _caption(options: argparse.Namespace) -> int:
    from .captioning import iter_captions
    from .saving import load_captioner

    sources = _find_sources(options.images)
    if options.output is not None and options.output.exists() and not options.overwrite:
        raise FileExistsError(f"{options.output} exists: give another --output, or --overwrite to replace it")
    if options.output is not None and not options.output.absolute().parent.is_dir():
        raise FileNotFoundError(f"--output {options.output}: there is no folder {options.output.parent}")
    model, processor = load_captioner(
        options.model,
        device=None if options.device == "auto" else options.device,
        dtype=None if options.dtype == "auto" else options.dtype,
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


def _positive(text: str) -> int:
    """Read a positive number, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return int(text)


def _natural(text: str) -> int:
    """Read a number from 0, for argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0")
    return int(text)


def _find_sources(arguments: Sequence[str]) -> list[str]:
    """List the images that the arguments name.

    Raises:
        ValueError: if one of them names none, before long work starts.
    """
    from .data.images import find_images

    sources: list[str] = []
    for argument in arguments:
        if argument == "-":
            # Bytes, as file names are; a line is a path and nothing else.
            lines = (os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer)
            found, expected = [line for line in lines if line], "paths on standard input, one a line"
        elif os.path.isdir(argument):
            found, expected = [str(path) for path in find_images(argument)], "images in that folder"
        elif glob.has_magic(argument) and not os.path.exists(argument):
            found = sorted(path for path in glob.glob(argument, recursive=True) if os.path.isfile(path))
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
    # A caption's own line breaks and tabs would break the line; the JSON file has it as it is.
    captions = (" ".join(caption.split()) for caption in result.captions)
    bar.write("\t".join([result.source, *captions]), file=sys.stdout)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
