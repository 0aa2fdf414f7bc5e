"""What a run shows and writes down: one progress bar, and a log of one JSON object a line."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..utils.json_files import parse_json
from .checkpoints import writing

LOG_FILE_SECONDS = 60  # between two lines of the bar where nobody watches it


class Progress:
    """The main process's screen and log; the other processes' do nothing.

    Args:
        log_file: Gets a line for each logged record.
        total_steps: Optimizer steps of the whole run.
        first_step: Optimizer steps taken before; later lines of an earlier try are removed from the log.
        enabled: False on all processes but the main one.
    """

    def __init__(self, log_file: Path, total_steps: int, first_step: int, enabled: bool) -> None:
        self.enabled = enabled
        if not enabled:
            return
        _keep_up_to(log_file, first_step)
        self._log_file = log_file
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

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self.enabled:
            with suppress(OSError):  # whoever read it has gone; the run goes on
                self._bar.write(text, file=sys.stdout)

    def log(self, record: dict[str, Any]) -> None:
        """Add a record to the log, at once on disk for whoever follows it."""
        if self.enabled:
            # Opened for each line: of a full disk, a file that stays open would complain again when closed.
            with writing(self._log_file), self._log_file.open("a", encoding="utf-8") as log:
                log.write(json.dumps(record) + "\n")

    def close(self) -> None:
        """End the bar."""
        if self.enabled:
            self._bar.close()


def _keep_up_to(log_file: Path, step: int) -> None:
    """Drop the lines after `step`: what an interrupted run did beyond its checkpoint is done again."""
    if step == 0:
        log_file.unlink(missing_ok=True)
    if not log_file.exists():
        return
    kept = []
    for line in log_file.read_text(encoding="utf-8").splitlines():
        try:
            if parse_json(line)["step"] <= step:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError):  # the line that was being written when it was killed
            continue
    draft = log_file.with_name(f".{log_file.name}.partial")
    draft.write_text("".join(kept), encoding="utf-8")
    os.replace(draft, log_file)
