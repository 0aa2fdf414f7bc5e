"""Command lines of training runs, and the files that a run leaves."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from processes import Command
from safetensors.torch import load_file
from small_models import contents, read_lines, read_log

from ituning_hf.training.arguments import TrainArguments

Settings = Callable[..., TrainArguments]  # the type of the fixture `settings`
SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "train.py"


def flags(args: TrainArguments) -> list[str]:
    """Return the command line of some settings."""
    given = {name: value for name, value in args.to_dict().items() if value is not None and value != []}
    lists = {name: value if isinstance(value, list) else [value] for name, value in given.items()}
    return [part for name, values in lists.items() for part in (f"--{name}", *map(str, values))]


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


def dataset_captions(args: TrainArguments, split: str) -> dict[str, list[str]]:
    """Return the captions of a split of the fixture `photos` by the image's name."""
    lines = read_lines(Path(args.dataset) / split / "metadata.jsonl")
    return {f"{split}/{line['file_name']}": line["captions"] for line in lines}


def losses(args: TrainArguments) -> list[float]:
    """Return the losses of a run's steps and validations, in the order of its log."""
    return [entry.get("loss", entry.get("validation_loss")) for entry in read_log(args.output_dir)]


def samples(args: TrainArguments) -> dict[int, dict[str, str]]:
    """Return the sample captions of each validation, by step."""
    return {entry["step"]: entry["samples"] for entry in read_log(args.output_dir) if "samples" in entry}


def count_log_lines(args: TrainArguments) -> int:
    """Return the length of a run's log; without validation, the optimizer steps taken."""
    log = Path(args.output_dir) / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def command(args: TrainArguments) -> list[str]:
    """Return the command line of a run, without the program's name."""
    return ["train", *flags(args)]


def wait_for_log(run: Command, args: TrainArguments, lines: int) -> None:
    """Wait until a run's log has that many lines."""
    end = time.monotonic() + 300
    while count_log_lines(args) < lines:
        assert run.process.is_alive(), run.printed
        assert time.monotonic() < end, run.printed
        time.sleep(0.005)


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
