"""What a run prints and logs: one progress bar, and a file of one JSON object per line."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..utils.files import write_text
from .run_folder import writing

LOG_FILE_SECONDS = 60  # between two updates of the bar where the output is not a terminal


class Progress:
    """The main process's bar and log; the other processes' do nothing.

    Args:
        log_file: Gets one line for each logged entry.
        total_steps: Optimizer steps of the whole run.
        first_step: Optimizer steps taken before; later lines of an interrupted run are removed from the log.
        enabled: False on all processes but the main one.
    """

    def __init__(self, log_file: Path, total_steps: int, first_step: int, enabled: bool) -> None:
        self.enabled = enabled
        if not enabled:
            return
        self._log_file = log_file
        _remove_later_lines(log_file, first_step)
        self._bar = tqdm(
            total=total_steps,
            initial=first_step,
            unit="step",
            dynamic_ncols=True,
            desc="training",
            mininterval=0.1 if sys.stderr.isatty() else LOG_FILE_SECONDS,
        )

    def step(self, loss: float, learning_rate: float, images_per_second: float) -> None:
        """Advance by one optimizer step."""
        if self.enabled:
            self._bar.set_postfix_str(
                f"loss {loss:.3f}, lr {learning_rate:.1e}, {images_per_second:.0f} images/s", refresh=False
            )
            self._bar.update()

    def print(self, text: str) -> None:
        """Print a line above the bar."""
        if self.enabled:
            with suppress(OSError):  # the reader of a pipe has gone; the run continues
                self._bar.write(text, file=sys.stdout)

    def log(self, entry: dict[str, Any]) -> None:
        """Append an entry to the log."""
        if self.enabled:
            # Opened for each line: on a full disk, a file that stays open would raise again when closed.
            with writing(self._log_file), self._log_file.open("a", encoding="utf-8") as log:
                log.write(json.dumps(entry) + "\n")

    def close(self) -> None:
        """Close the bar."""
        if self.enabled:
            self._bar.close()


def _remove_later_lines(log_file: Path, step: int) -> None:
    """Keep the lines up to `step`: a resumed run repeats what came after its checkpoint."""
    if step == 0:
        log_file.unlink(missing_ok=True)
    if not log_file.exists():
        return
    kept = []
    for line in log_file.read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError):  # a killed run was writing this line
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
    write_text(log_file, "".join(kept))
