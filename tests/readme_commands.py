"""The README's commands, run as a newcomer runs them: in an empty place, over a Hub cache of small models."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def read_commands(section: str) -> list[list[str]]:
    """Return the command lines of a part of the README, from its heading to the next, a word each."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split(f"\n{section}\n")[1]
    text = re.split(r"^#+ (?!.*```)", text, maxsplit=1, flags=re.M)[0]
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def cache_as_downloaded(cache: Path, name: str, folder: Path) -> None:
    """Put a model into a Hub cache as if it had been downloaded."""
    repository = cache / "hub" / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)


def run_command(words: Sequence[str], folder: Path, cache: Path) -> str:
    """Run a command in a folder; return what it printed, having shown it."""
    environment = os.environ | {
        "HF_HOME": str(cache),
        "PYTHONWARNINGS": "ignore",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, shlex.join(words) + done.stdout + done.stderr
    sys.stdout.write(f"$ {shlex.join(words)}\n{done.stdout}")
    return done.stdout
