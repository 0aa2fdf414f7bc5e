"""Run scripts in subprocesses, with or without the package."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Makes a subprocess behave as if these packages were not installed.
HIDE = """
import sys

HIDDEN = {"ituning_hf", "peft", "accelerate", "torchvision", "evaluate", "datasets", "bitsandbytes"}


class WithoutHidden:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)


sys.meta_path[:] = [WithoutHidden(finder) for finder in sys.meta_path]
for name in HIDDEN:
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} is not hidden")
"""


def run_fresh(
    script: str,
    cwd: Path,
    *arguments: object,
    hide: bool = True,
    environment: Mapping[str, str] | None = None,
    ignored_warning: str | None = None,
) -> dict[str, Any]:
    """Run a script in a subprocess and return its dictionary `found`.

    Args:
        script: The code.
        cwd: Its working directory.
        *arguments: For its `sys.argv`.
        hide: Hide this package and its optional dependencies.
        environment: By default this process's environment variables, with an own cache of remote code.
        ignored_warning: The beginning of the one warning that is not an error.
    """
    environment = environment or os.environ | {"HF_MODULES_CACHE": str(cwd / "modules")}
    code = (HIDE if hide else "import sys\n") + script + "\nprint()\nprint(json.dumps(found))"
    flags = [*(["-I"] if hide else []), "-W", "error"]
    flags += ["-W", f"ignore:{ignored_warning}"] if ignored_warning else []
    done = subprocess.run(
        [sys.executable, *flags, "-c", code, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
