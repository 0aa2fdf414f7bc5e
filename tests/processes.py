"""Command lines, and commands in processes of their own.

A process that has imported everything forks one child for each `Command`, which then starts at once.
"""

import importlib
import itertools
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ituning_hf.cli import main

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["ituning_hf.training.run", "ituning_hf.inference.captioning"])


class Command:
    """`ituning` in a process of its own, which leads a process group.

    Args:
        argv: Its arguments.
        output: The file for its standard output and error.
        environment: Variables that are added to those of this process.
        prepare: What the process calls first; it can be pickled.
    """

    def __init__(
        self,
        argv: list[str],
        output: Path,
        environment: Mapping[str, str] | None = None,
        prepare: Callable[[], object] = int,
    ):
        self.output = output
        arguments = (argv, str(output), dict(environment or {}), prepare)
        self.process: Any = _CONTEXT.Process(target=_run, args=arguments)
        self.process.start()

    @property
    def printed(self) -> str:
        """Its output so far."""
        return self.output.read_text() if self.output.exists() else ""

    def kill(self) -> None:
        """Kill it, together with its data loader's workers."""
        os.killpg(self.process.pid, signal.SIGKILL)
        assert self.end() == -signal.SIGKILL, self.printed

    def end(self, timeout: float = 300) -> int:
        """Wait for its end; return its exit code, negative for a signal's number."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, self.printed
        return self.process.exitcode


def options(**values: object) -> list[str]:
    """Return flags with their values."""
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def start_two(argv: list[str], folder: Path, other_host: list[str] | None = None) -> list[Command]:
    """Start a command on two processes, the main process first; their output goes to files in a folder.

    `other_host` is the second one's command line, if it is to be the first process of a host of its own.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    starts = [(argv, "0"), (argv, "1") if other_host is None else (other_host, "0")]
    return [
        Command(words, folder / f"output {rank}", common | {"RANK": str(rank), "LOCAL_RANK": local_rank})
        for rank, (words, local_rank) in enumerate(starts)
    ]


def run_on_two(
    argv: list[str], folder: Path, exit_code: int = 0, other_host: list[str] | None = None
) -> list[Command]:
    """Run a command on two processes, as `start_two` does, until both have ended with an exit code."""
    runs = start_two(argv, folder, other_host)
    assert [run.end() for run in runs] == [exit_code] * 2, [run.printed for run in runs]
    return runs


def signal_in(module: str, function: str, call: int, signum: int) -> None:
    """Make this process send itself a signal in one of its calls of a function, the first being 1."""
    namespace = importlib.import_module(module)
    original, number = getattr(namespace, function), itertools.count(1)

    def signalling(*arguments: Any, **options: Any) -> Any:
        if next(number) == call:
            os.kill(os.getpid(), signum)
        return original(*arguments, **options)

    setattr(namespace, function, signalling)


def _run(argv: list[str], output: str, environment: dict[str, str], prepare: Callable[[], object]) -> None:
    os.environ.update(environment)
    os.setpgrp()
    multiprocessing.set_start_method("fork", force=True)  # the default of an ordinary process
    with open(output, "wb") as file:
        for standard in (1, 2):
            os.dup2(file.fileno(), standard)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the forking process ignores it
    prepare()
    sys.exit(main(argv))
