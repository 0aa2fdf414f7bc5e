"""The flags that every benchmark has."""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers.utils import logging as progress

from ituning_hf.cli.arguments import natural, positive

from .sizes import SIZES

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def benchmark_parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """Return a parser with the common flags.

    Args:
        description: The command's docstring.
        rounds: The default of `--rounds`.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--size", choices=SIZES, default="base", help="of the models (default: %(default)s)")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", type=_device, default=device, help="cpu or cuda (default: cuda where there is one)")
    add("--dtype", choices=[*DTYPES], default="float32", help="(default: %(default)s)")
    add("--rounds", type=positive, default=rounds, help="runs of each way that count (default: %(default)s)")
    add("--warm_up", type=natural, default=1, help="runs of each before that (default: %(default)s)")
    add("--output", type=writable_file, help="a JSON file for the tables")
    return parser


def add_memory_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag of those that measure memory."""
    help = "leave out peak memory, a new process for each way"
    parser.add_argument("--no_memory", action="store_true", help=help)


def add_ways_flag(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Add the flag that names ways."""
    help = f"only these, of: {'; '.join(names)}"
    parser.add_argument("--ways", nargs="+", choices=names, metavar="WAY", help=help)


def check_ways(parser: argparse.ArgumentParser, ways: Sequence[str], there: Sequence[str]) -> None:
    """End with a message if a way is not there at the size, precision and device that are asked for."""
    if missing := [way for way in ways if way not in there]:
        parser.error(f"{missing} cannot be measured at this --size, --dtype and --device: leave it out.")


def writable_folder(text: str) -> Path:
    """Read a folder that can be written to, and make it if it is not there."""
    folder = Path(text)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        message = f"{text!r} cannot be written to ({error.strerror}): give a folder that can"
        raise argparse.ArgumentTypeError(message) from error


def writable_file(text: str) -> Path:
    """Read a file that can be written."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder: give a file in it")
    writable_folder(str(path.parent))
    return path


def _device(text: str) -> str:
    if text not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"{text!r} is no device: give cpu or cuda")
    if text == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("PyTorch finds no GPU here: give cpu")
    return text


@contextmanager
def quiet() -> Iterator[None]:
    """Keep libraries from saying that random backbones are random and stored nowhere.

    Nor need one know that PEFT asks Transformers by a name of before version 5.
    """
    showed = progress.is_progress_bar_enabled()
    progress.disable_progress_bar()
    loggers = [logging.getLogger(name) for name in ("transformers", "ituning_hf")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if showed:
            progress.enable_progress_bar()
