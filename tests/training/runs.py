"""Training runs in processes of their own, and the files that a run leaves.

A process that has imported everything forks one child for each `Run`, which then starts at once.
"""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ituning_hf.cli import main
from ituning_hf.training.arguments import TrainArguments

Settings = Callable[..., TrainArguments]  # the type of the fixture `settings`
SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "train.py"

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["ituning_hf.training.run", "ituning_hf.inference.captioning"])


def flags(args: TrainArguments) -> list[str]:
    """Return the command line of some settings."""
    given = {name: value for name, value in args.to_dict().items() if value is not None and value != []}
    lists = {name: value if isinstance(value, list) else [value] for name, value in given.items()}
    return [part for name, values in lists.items() for part in (f"--{name}", *map(str, values))]


def contents(folder: str | Path) -> dict[str, bytes]:
    """Return every file of a folder by its relative path."""
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def differences(ours: str | Path, theirs: str | Path) -> list[str]:
    """Return the files that are missing in one of two folders or differ in a byte."""
    one, two = contents(ours), contents(theirs)
    return sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))


def adapter(run: str | Path, name: str = "last") -> dict[str, torch.Tensor]:
    """Return the weights of a run's captioner."""
    return load_file(Path(run) / name / "model.safetensors")


def checkpoints(run: str | Path) -> list[str]:
    """Return the names of a run's checkpoints, oldest first."""
    return sorted(path.name for path in (Path(run) / "checkpoints").iterdir())


def count_log_lines(args: TrainArguments) -> int:
    """Return the length of a run's log; without validation, the optimizer steps taken."""
    log = Path(args.output_dir) / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


class Run:
    """One `ituning train` in a process of its own; its output goes to a file.

    Args:
        args: Its settings.
        output: The file for its standard output and error.
        environment: Variables that are added to those of this process.
    """

    def __init__(self, args: TrainArguments, output: Path, environment: Mapping[str, str] | None = None):
        self.args, self.output = args, output
        task = (flags(args), str(output), dict(environment or {}))
        self.process: Any = _CONTEXT.Process(target=_train, args=task)
        self.process.start()

    @property
    def printed(self) -> str:
        """Its output so far."""
        return self.output.read_text() if self.output.exists() else ""

    def wait_for_log(self, lines: int, timeout: float = 300) -> None:
        """Wait until its log has that many lines."""
        end = time.monotonic() + timeout
        while count_log_lines(self.args) < lines:
            assert self.process.is_alive(), self.printed
            assert time.monotonic() < end, self.printed
            time.sleep(0.005)

    def kill(self) -> None:
        """Kill it, together with its data loader's workers."""
        os.killpg(self.process.pid, signal.SIGKILL)
        assert self.end() == -signal.SIGKILL, self.printed

    def end(self, timeout: float = 300) -> int:
        """Wait for its end; return its exit code, negative for a signal's number."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, self.printed
        return self.process.exitcode


def start_two(args: TrainArguments, folder: Path) -> list[Run]:
    """Start a run on two processes, the main process first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [Run(args, folder / f"output {r}", common | {"RANK": r, "LOCAL_RANK": r}) for r in "01"]


def run_on_two(args: TrainArguments, folder: Path, exit_code: int = 0) -> list[Run]:
    """Train on two processes until both have ended with an exit code."""
    runs = start_two(args, folder)
    assert [run.end() for run in runs] == [exit_code] * 2, [run.printed for run in runs]
    return runs


@contextmanager
def torchrun(args: TrainArguments, logs: Path) -> Iterator[subprocess.Popen[str]]:
    """Start `torchrun examples/train.py` on two processes, whose output goes to files below `logs`."""
    program = str(Path(sys.executable).parent / "torchrun")
    options = ["--standalone", "--nproc_per_node", "2", "--log-dir", str(logs), "--redirects", "3"]
    command = [program, *options, str(SCRIPT), *flags(args)]
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(command, env=environment, text=True, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def _train(arguments: list[str], output: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    os.setpgrp()
    multiprocessing.set_start_method("fork", force=True)  # the default of an ordinary process
    with open(output, "wb") as file:
        for standard in (1, 2):
            os.dup2(file.fileno(), standard)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the forking process ignores it
    sys.exit(main(["train", *arguments]))
