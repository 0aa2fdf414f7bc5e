"""`ituning caption`: caption images, and write the captions to a file or beside the images."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, ClassVar

from ..inference.arguments import BatchArguments, CaptionerArguments
from ..utils.errors import UserError
from ..utils.files import existing_part
from ..utils.ranks import Rank, process_rank
from ..utils.rules import AT_LEAST_ONE, FILE, FOLDER, MODEL, NAME, TEXT, one_of
from ..utils.settings import REQUIRED, Settings, option, read_settings
from ..utils.terminal import printable, quiet_transformers

if TYPE_CHECKING:
    from tqdm import tqdm

    from ..inference.captioning import CaptionResult
    from ..inference.job import Job
    from ..inference.outputs import Output
    from ..training.signals import StopRequest

_DESCRIPTION = """\
Caption images with a saved captioner. Each image gives a line: its path, a tab
and its caption (a tab and the next caption, ...). Images are never changed.
Images that have captions in --output or by --format are skipped."""
_EXAMPLES = """\
examples:
  ituning caption dog.jpg --model my-captioner
  ituning caption "photos/**/*.png" --model my-captioner --num_captions 3
  find photos -name "*.jpg" -mtime -1 | ituning caption - --model my-captioner \\
      --output captions.jsonl
  ituning caption photos/ --model my-captioner --format xmp
  torchrun --nproc_per_node 8 -m ituning_hf.cli caption photos/ \\
      --model my-captioner --output captions.parquet

With --output or --format, the same command continues after it was stopped or
killed. The processes of torchrun, accelerate launch or srun share the images.

Exit code: 0; 1 if an image could not be read (the others are captioned) or the
captions could not be written; 2 for an error in the command; 130 after Ctrl-C,
143 after SIGTERM.
"""
_NOTICE = "finishing the batch"
_WITH_CAPTIONS = (".txt", ".caption", ".xmp", ".jsonl", ".csv", ".parquet", ".bak")
_NOTHING_TO_DO = "nothing to do: all images have captions (--overwrite replaces them)"


@dataclass(kw_only=True)  # allows required fields after fields with defaults
class CaptionArguments(BatchArguments, CaptionerArguments, Settings):
    """The settings of `ituning caption`."""

    title: ClassVar[str] = Settings.title

    model: str | None = option(REQUIRED, "the captioner's folder or Hub id (required)", MODEL)
    images: list[str] = option(
        REQUIRED,
        "a file, a folder (with its subfolders), a quoted glob, - for paths on standard input, or a dataset "
        "(.json, .jsonl, .csv, .parquet or .tar, a folder of the last two, a Hub id)",
        metavar="IMAGE...",
        positional=True,
    )
    num_captions: int = option(1, "captions for each image", AT_LEAST_ONE)
    prompt: str | None = option(None, "text that every caption begins with", TEXT, "no text")
    device: str | None = option(
        None, "cpu, cuda, cuda:1 or mps", NAME, "the best available; each process its own GPU"
    )
    output: str | None = option(
        None,
        "write the captions to a .jsonl, .csv or .parquet file; or, without a suffix, to a folder with a "
        "Parquet file of each process",
        FILE,
        "no file",
    )
    format: str | None = option(
        None,
        "write the captions beside the images: txt (dog.txt), xmp (dog.jpg.xmp) or imagefolder "
        "(metadata.jsonl in the folder IMAGE)",
        one_of(("txt", "xmp", "imagefolder")),
        "no files",
    )
    overwrite: bool = option(
        False, "replace existing captions of the images; the file NAME is kept as NAME.bak, NAME.bak2, ..."
    )
    image_root: str | None = option(
        None, "folder that the image paths of a dataset are relative to", FOLDER, "found"
    )
    image_column: str | None = option(None, "image column of a dataset", NAME, "found by its name")

    def __post_init__(self) -> None:
        """Check the settings, also against each other."""
        super().__post_init__()
        if self.output is not None and self.format is not None:
            raise UserError("--output and --format both select where the captions go: remove one")
        if self.format == "xmp" and self.num_captions > 1:
            raise UserError("--format xmp has one caption for each image: remove --num_captions")
        if self.format == "imagefolder" and not (len(self.images) == 1 and os.path.isdir(self.images[0])):
            raise UserError("--format imagefolder requires one IMAGE, the folder of the images")


def run(argv: Sequence[str]) -> int:
    """Caption the images and return the exit code."""
    args = read_settings(CaptionArguments, argv, "ituning caption", _DESCRIPTION, _EXAMPLES)
    from ..training.signals import stop_on_signals

    rank = process_rank()
    if rank.count > 1 and "-" in args.images:
        raise UserError("several processes cannot share standard input: give files, folders or a dataset")
    output = _make_output(args, rank)
    with stop_on_signals(_NOTICE) as stop:
        return _caption(args, rank, output, stop)


def _make_output(args: CaptionArguments, rank: Rank) -> Output | None:
    from ..inference.outputs import TABLE_SUFFIXES, PartsFolder, Sidecars, TableFile

    if args.format == "imagefolder":
        return TableFile(Path(args.images[0]) / "metadata.jsonl", args.overwrite)
    if args.format is not None:
        # The work is kept in the first argument's folder; a glob, "-" or a Hub id may have none of that name.
        first = Path(args.images[0])
        folder = existing_part(first if first.is_dir() else first.parent)
        return Sidecars(f".{args.format}", folder, args.overwrite)
    if args.output is None:
        return None
    path = Path(args.output)
    if not path.absolute().parent.is_dir():
        raise UserError(f"--output is {str(path)!r}, and there is no folder {path.parent}")
    if (path.suffix == "" or args.output.endswith(("/", os.sep))) and not path.is_file():
        return PartsFolder(path, rank, args.overwrite)
    if path.suffix not in TABLE_SUFFIXES or path.is_dir():
        expected = "a .jsonl, .csv or .parquet file, or a folder without suffix"
        raise UserError(f"--output is {args.output!r}, expected {expected}")
    return TableFile(path, args.overwrite)


def _caption(args: CaptionArguments, rank: Rank, output: Output | None, stop: StopRequest) -> int:
    from tqdm import tqdm

    from ..inference.captioning import search_options
    from ..inference.job import Batches, begin_job, has_work
    from ..inference.loading import captioner_digest
    from ..inference.pictures import find_pictures
    from ..training.errors import RunStopped

    job, device = None, rank.device(args.device)
    left_out: Counter[str] = Counter()
    pictures = find_pictures(args.images, args.image_root, args.image_column, left_out)
    _report(left_out, rank)
    if output is not None:
        all_names = pictures.names(output)
        names, rank = output.share(all_names.unique(), rank)
        if not has_work(output, names):
            _print_note(_NOTHING_TO_DO)
            return 0
    quiet_transformers()
    model, processor = args.load_captioner(device)
    # Before the work folder is made, because it also checks them.
    settings = search_options(model, args.num_captions, args.num_beams, args.max_new_tokens, {})
    search = {name: getattr(args, name) for name in ("num_captions", "num_beams", "max_new_tokens", "prompt")}
    if output is not None:
        others = ("prompt", "batch_size", "dtype", "quantization", "overwrite")
        settings |= {name: getattr(args, name) for name in others}
        job = begin_job(output, names, rank, settings | {"captioner": captioner_digest(model)})
        if job is None:  # another process has done it in the meantime
            _print_note(_NOTHING_TO_DO)
            return 0
        pictures = job.locate(pictures, all_names)
    batches, width = Batches(pictures, args.batch_size, rank, job), min(80, get_terminal_size().columns)
    with (
        closing(batches.caption(model, processor, **search)) as results,
        tqdm(total=len(batches.images), unit="image", ncols=width, disable=not sys.stderr.isatty()) as bar,
    ):
        stop.deferred = True
        for batch in results:
            for result in batch:
                _print(result, bar)
            if stop.signum is not None:
                raise RunStopped(
                    stop.signum, "after a batch" + ("; the same command continues" if job else "")
                )
    if batches.num_unreadable:
        _print_note(f"{batches.num_unreadable:,} of {batches.num_images:,} images could not be read")
    if job is not None:
        _finish(job, rank)
    return 1 if batches.num_unreadable else 0


def _finish(job: Job, rank: Rank) -> None:
    """Write the output, if all processes have finished, and print what it has."""
    if not job.finish():
        _print_note(f"the last process that finishes writes {job.output.title}")
    elif job.num_written is not None:
        existing = f"; {job.num_existing:,} were there" if job.num_existing else ""
        _print_note(f"captions of {job.num_written:,} images written to {job.output.title}{existing}")
    if job.num_empty:
        _print_note(f"{job.num_empty:,} images got an empty caption, which is not written")
    if job.num_new and rank.index == 0:
        _print_note(f"{job.num_new:,} new images are captioned by the next run")


def _print_note(text: str) -> None:
    print(f"ituning: {printable(text)}", file=sys.stderr)


def _report(left_out: Counter[str], rank: Rank) -> None:
    """Print how many files of folders are left out, without those that have captions, on one process."""
    other = Counter({suffix: count for suffix, count in left_out.items() if suffix not in _WITH_CAPTIONS})
    if other and rank.index == 0:
        most = ", ".join(f"{count:,} {suffix or '(no suffix)'}" for suffix, count in other.most_common(5))
        _print_note(f"left out {other.total():,} files that are not images: {most}")


def _print(result: CaptionResult, bar: tqdm[None]) -> None:
    bar.update()
    if result.error is not None:
        bar.write(f"ituning: {result.error}", file=sys.stderr)
        return
    # A line break or tab would break the format, and terminals interpret control characters.
    texts = [result.source, *(" ".join(caption.split()) for caption in result.captions)]
    bar.write("\t".join(map(printable, texts)), file=sys.stdout)
    sys.stdout.flush()
