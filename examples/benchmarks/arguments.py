"""The flags that every benchmark has."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers.utils import logging as progress

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
    add("--device", choices=["cpu", "cuda"], default=device, help="(default: cuda where there is one)")
    add("--dtype", choices=[*DTYPES], default="float32", help="(default: %(default)s)")
    add("--rounds", type=int, default=rounds, help="runs of each way that count (default: %(default)s)")
    add("--warm_up", type=int, default=1, help="runs of each before that (default: %(default)s)")
    add("--output", type=Path, help="a JSON file for the tables")
    add("--no_memory", action="store_true", help="leave out peak memory, a new process for each way")
    return parser


@contextmanager
def quiet() -> Iterator[None]:
    """Keep libraries from saying that random backbones are random and stored nowhere."""
    showed = progress.is_progress_bar_enabled()
    progress.disable_progress_bar()
    loggers = [logging.getLogger(name) for name in ("transformers", "ituning_hf")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if showed:
            progress.enable_progress_bar()
