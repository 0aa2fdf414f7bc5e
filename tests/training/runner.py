"""Whole runs of `ituning train` in processes of their own, which can be stopped, killed and starved of disk.

A process that has imported everything forks one child for each run, so that a run begins in a fraction of a
second. What runs is the command itself.
"""

import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ituning_hf.cli import main
from ituning_hf.training.arguments import TrainArguments

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "train.py"
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["ituning_hf.training", "ituning_hf.inference.captioning"])
_FILE_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


def flags(args: TrainArguments) -> list[str]:
    """Return the command line of some settings."""
    given = {name: value for name, value in args.to_dict().items() if value is not None and value != []}
    lists = {name: value if isinstance(value, list) else [value] for name, value in given.items()}
    return [part for name, values in lists.items() for part in (f"--{name}", *map(str, values))]


class Run:
    """One `ituning train` at work.

    Args:
        args: Its settings.
        kill_at: It kills itself, and its workers, before this operation on a file of its folder.
        file_limit: The kernel lets no file of its grow beyond so many bytes.
        environment: Variables that it has beside those of this process.
    """

    def __init__(
        self,
        args: TrainArguments,
        kill_at: int | None = None,
        file_limit: int | None = None,
        environment: Mapping[str, str] | None = None,
    ):
        reader, writer = _CONTEXT.Pipe(duplex=False)
        self.log_file = Path(args.output_dir) / "log.jsonl"
        folder = os.path.abspath(args.output_dir)
        task = (flags(args), folder, kill_at, file_limit, dict(environment or {}), writer)
        self.process: Any = _CONTEXT.Process(target=_train, args=task)
        self.process.start()
        writer.close()
        self._printed: list[bytes] = []
        self._reader = threading.Thread(target=self._read, args=(reader,), daemon=True)
        self._reader.start()

    def _read(self, reader: Any) -> None:
        while part := os.read(reader.fileno(), 65536):
            self._printed.append(part)
        reader.close()

    @property
    def printed(self) -> str:
        """What it printed so far, errors among it."""
        return b"".join(self._printed).decode()

    def wait_for(self, text: str) -> None:
        """Wait until it has printed a text."""
        self.wait_until(lambda: text in self.printed)

    def wait_for_step(self, step: int) -> None:
        """Wait until its log has so many lines; without validation, the optimizer steps taken."""
        self.wait_until(lambda: self.log_file.exists() and self.log_file.read_bytes().count(b"\n") >= step)

    def wait_until(self, holds: Callable[[], bool], timeout: float = 300) -> None:
        """Wait until something is true."""
        end = time.monotonic() + timeout
        while not holds():
            assert self.process.is_alive() or holds(), self.printed
            assert time.monotonic() < end, self.printed
            time.sleep(0.005)

    def signal(self, signum: int, group: bool = False) -> None:
        """Send it a signal, or with its data loader's workers."""
        try:
            (os.killpg if group else os.kill)(self.process.pid, signum)
        except ProcessLookupError:  # over already, or not yet a group of its own
            self.process.kill() if signum == signal.SIGKILL else None

    def end(self, timeout: float = 300) -> int:
        """Wait for its end; return its exit code, negative for a signal's number."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, self.printed
        self._reader.join(timeout)
        return self.process.exitcode

    @property
    def file_operations(self) -> int:
        """How many operations on files of its folder a run that is over has made."""
        return int(self.printed.rsplit("file operations: ", 1)[1])


def run_by_two(args: TrainArguments) -> list[Run]:
    """Start a run on two processes, as `torchrun` does, in a fraction of its time; the main one first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [{"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    return [Run(args, environment=common | rank) for rank in ranks]


def _train(
    arguments: list[str],
    folder: str,
    kill_at: int | None,
    file_limit: int | None,
    environment: dict[str, str],
    out: Any,
) -> None:
    os.environ.update(environment)
    os.setpgrp()
    multiprocessing.set_start_method("fork", force=True)  # as in a process of its own
    for standard in (1, 2):
        os.dup2(out.fileno(), standard)
    out.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the forking process ignores it
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    count, process = 0, os.getpid()

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event in _FILE_EVENTS and os.getpid() == process and str(arguments[0]).startswith(folder):
            count += 1
            if count == kill_at:
                os.killpg(0, signal.SIGKILL)

    sys.addaudithook(watch)
    code = main(["train", *arguments])
    sys.stdout.write(f"file operations: {count}\n")
    sys.exit(code)


def start(command: list[str]) -> subprocess.Popen[str]:
    """Start a command of this environment as a process of its own."""
    program = str(Path(sys.executable).parent / command[0])
    variables = os.environ | {"PYTHONWARNINGS": "ignore"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([program, *command[1:]], env=variables, **pipes)


def torchrun(args: TrainArguments) -> subprocess.Popen[str]:
    """Start a run on two processes."""
    return start(["torchrun", "--standalone", "--nproc_per_node", "2", str(SCRIPT), *flags(args)])


def contents(folder: str | Path) -> dict[str, bytes]:
    """Return every file of a folder by its relative path."""
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
