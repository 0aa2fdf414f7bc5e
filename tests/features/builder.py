"""Whole runs of `ituning features build` in processes of their own, which kill themselves when told to.

A process that has imported everything forks one child for each run, so that a run begins in a fraction of a
second. What runs is the command itself.
"""

import faulthandler
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ituning_hf.cli import main

SIGKILL = -signal.SIGKILL
PATIENCE = 120  # seconds; a run that hangs says where
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["ituning_hf.features", "ituning_hf.training.signals", "ituning_hf.inference.captioning"]
)
_FILE_EVENTS = {"open", "os.chmod", "os.mkdir", "os.remove", "os.rename"}


class Builder:
    """One `ituning features build` at work.

    Args:
        arguments: Its flags.
        folder: The store's.
        kill_at: It kills itself, and its workers, before this operation on a file of its folder.
    """

    def __init__(self, arguments: Sequence[str], folder: Path, kill_at: int | None = None) -> None:
        self.output = folder.with_name(f"{folder.name}.txt")
        self.folder = folder
        flags = ["features", "build", *arguments, "--output_dir", str(folder)]
        self.process: Any = _CONTEXT.Process(target=_run, args=(flags, str(folder), kill_at, self.output))
        self.process.start()

    @property
    def printed(self) -> str:
        """What it printed, errors among it."""
        return self.output.read_text() if self.output.exists() else ""

    def wait_for_shards(self, count: int) -> None:
        """Wait until the store has so many."""
        deadline = time.monotonic() + PATIENCE
        while len(list(self.folder.glob("features-*"))) < count:
            assert self.process.is_alive(), self.printed
            assert time.monotonic() < deadline, self.printed
            time.sleep(0.002)

    def signal(self, signum: int) -> None:
        """Send it, and its workers, a signal."""
        os.killpg(self.process.pid, signum)

    def end(self) -> int:
        """Wait for its end; return its exit code, negative for a signal's number."""
        self.process.join(PATIENCE)
        assert self.process.exitcode is not None, self.printed
        return self.process.exitcode

    @property
    def file_operations(self) -> int:
        """How many operations on files of its folder a run that is over has made."""
        return int(self.printed.rsplit("file operations: ", 1)[1])


def _run(flags: list[str], folder: str, kill_at: int | None, output: Path) -> None:
    os.setpgrp()
    multiprocessing.set_start_method("fork", force=True)  # as in a process of its own
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    faulthandler.dump_traceback_later(PATIENCE - 10, file=2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the forking process ignores it
    count, process = 0, os.getpid()

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event in _FILE_EVENTS and os.getpid() == process and str(arguments[0]).startswith(f"{folder}"):
            count += 1
            if count == kill_at:
                os.killpg(0, signal.SIGKILL)

    sys.addaudithook(watch)
    code = main(flags)
    sys.stdout.write(f"file operations: {count}\n")
    sys.stdout.flush()
    os._exit(code)
