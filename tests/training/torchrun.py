"""Runs on two processes, as a user starts them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runs import flags

from ituning_hf.training.arguments import TrainArguments

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "train.py"
ENVIRONMENT = os.environ | {"PYTHONWARNINGS": "ignore"}


@contextmanager
def torchrun(args: TrainArguments, logs: Path) -> Iterator[subprocess.Popen[str]]:
    """Start `torchrun examples/train.py`, which writes each process's output to a file of its own."""
    program = str(Path(sys.executable).parent / "torchrun")
    options = ["--standalone", "--nproc_per_node", "2", "--log-dir", str(logs), "--redirects", "3"]
    command = [program, *options, str(SCRIPT), *flags(args)]
    with subprocess.Popen(command, env=ENVIRONMENT, text=True, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def outputs(logs: Path, stream: str) -> list[str]:
    """Return what each process wrote to "stdout" or "stderr", the main process first."""
    return [path.read_text() for path in sorted(logs.rglob(f"{stream}.log"))]
