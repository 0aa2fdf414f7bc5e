"""Progress reports of a run: the bar, `log.jsonl`, the page, and trackers through Accelerate."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from textwrap import shorten
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from tqdm import tqdm

from ..evaluation.scores import METRIC_NAMES
from ..hub.records import ValidationRecord
from ..utils.errors import UserError
from ..utils.files import read_json, write_json, write_text
from ..utils.terminal import bar_interval, printable
from .arguments import TrainArguments
from .page import RunPage
from .run_folder import LOG_FILE, RUN_FILE, writing

PROJECT = "ituning"  # the trackers' name for all runs
BAR_FORMAT = "{bar:8} {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"  # at most 80 columns
SHOWN_CHARACTERS = 110  # of a sample caption


def require_trackers(names: Sequence[str]) -> None:
    """Raise a UserError for a tracker that is not installed, before long work."""
    available = {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        if name not in available:
            raise UserError(
                f"--report_to {name}: it is not installed. Run pip install {name}, or omit the tracker."
            )


def read_run_file(output_dir: Path) -> dict[str, Any]:
    """Return the content of `run.json`, with which trackers continue a run."""
    try:
        return read_json(output_dir / RUN_FILE)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{output_dir / RUN_FILE} is missing, and --report_to needs it to continue the run: restore the "
            "file, or resume without --report_to."
        ) from error


class Reporter:
    """Reports a run's steps and validations; does nothing on all processes but the main one.

    A resumed run continues the log and the trackers' run after `first_step`, its checkpoint's step.
    """

    def __init__(
        self,
        args: TrainArguments,
        accelerator: Accelerator,
        page: RunPage,
        total_steps: int,
        first_step: int,
    ) -> None:
        self.accelerator, self.enabled = accelerator, accelerator.is_main_process
        self.page = page
        if not self.enabled:
            return
        if args.report_to:
            _start_trackers(args, accelerator, first_step)
        self._log_file = Path(args.output_dir) / LOG_FILE
        for line in _keep_lines(self._log_file, first_step):
            page.add(json.loads(line))
        self._bar = tqdm(
            total=total_steps,
            initial=first_step,
            bar_format=BAR_FORMAT,
            dynamic_ncols=True,
            mininterval=bar_interval(),
        )

    def step(
        self, step: int, means: dict[str, float], rate: float, images_per_second: float, skipped: bool
    ) -> None:
        """Report an optimizer step: its loss and the objective's metrics; `skipped` if fp16 overflowed."""
        if not self.enabled:
            return
        shown = "reward" if "reward" in means else "loss"
        postfix = f"{shown} {means[shown]:.3f}, lr {rate:.0e}, {images_per_second:.0f} images/s"
        self._bar.set_postfix_str(postfix, refresh=False)
        self._bar.update()
        entry: dict[str, Any] = {"step": step, **means, "learning_rate": rate}
        if skipped:
            entry["skipped"] = True
            self.print(f"step {step} is skipped: its gradients overflow fp16")
        self._log(entry)
        values = means | {"learning_rate": rate, "images_per_second": images_per_second}
        self.accelerator.log({f"train/{name}": value for name, value in values.items()}, step=step)

    def validation(self, when: str, record: ValidationRecord, samples: dict[str, str]) -> None:
        """Report a validation and its sample captions, by image name."""
        if not self.enabled:
            return
        self.print("\n".join(validation_lines(f"step {record.step}, {when}", record, samples)))
        scores = {f"validation_{name}": value for name, value in record.scores.items()}
        self._log({"step": record.step} | scores | ({"samples": samples} if samples else {}))
        self.page.write()
        values = {f"validation/{name}": value for name, value in record.scores.items()}
        self.accelerator.log(values, step=record.step)
        if samples:
            self._track_samples(samples, record.step)

    def print(self, text: str) -> None:
        """Print a line above the bar."""
        if self.enabled:
            with suppress(OSError):  # the reader of the pipe has exited; the run continues
                self._bar.write(text, file=sys.stdout)

    def write_page(self) -> None:
        """Bring the page up to date, also if the run has no validation."""
        if self.enabled:
            self.page.write()

    def close(self) -> None:
        """Close the bar."""
        if self.enabled:
            self._bar.close()

    def _log(self, entry: dict[str, Any]) -> None:
        # Opened for each line: on a full disk, a file that stays open would raise again when closed.
        with writing(self._log_file), self._log_file.open("a", encoding="utf-8") as log:
            log.write(json.dumps(entry) + "\n")
        self.page.add(entry)

    def _track_samples(self, samples: dict[str, str], step: int) -> None:
        """Send captions in the form that each tracker shows best."""
        columns, rows = ["image", "caption"], [list(sample) for sample in samples.items()]
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.log({f"samples/{name}": text for name, text in samples.items()}, step=step)
            elif tracker.name == "wandb":
                tracker.log_table("samples", columns=columns, data=rows, step=step)
            else:
                import trackio

                tracker.log({"samples": trackio.Table(columns=columns, data=rows)}, step=step)


def validation_lines(when: str, record: ValidationRecord, samples: dict[str, str]) -> list[str]:
    """Return a validation's results as text."""
    lines = [f"validation loss {record.scores['loss']:.4f}  ({when})"]
    if record.num_scored:
        scores = [f"{METRIC_NAMES[name]} {x:.4f}" for name, x in record.scores.items() if name != "loss"]
        lines.append(f"  captions of {record.num_scored:,} validation images: {', '.join(scores)}")
    # An untrained captioner may not end its captions; the log has all of them.
    shown = {printable(name): printable(shorten(text, SHOWN_CHARACTERS)) for name, text in samples.items()}
    width = max(map(len, shown), default=0) + 1
    return lines + [f"  {name + ':':<{width}} {text}" for name, text in shown.items()]


def _start_trackers(args: TrainArguments, accelerator: Accelerator, first_step: int) -> None:
    output_dir = Path(args.output_dir)
    name = f"{output_dir.resolve().name}-{_run_id(output_dir)}"
    config = {  # TensorBoard takes numbers and text only
        key: value if isinstance(value, (int, float, str)) else str(value)
        for key, value in args.to_dict().items()
    }
    accelerator.init_trackers(
        PROJECT,
        # Trackio loses them when it resumes, and TensorBoard would add a second set.
        config=None if first_step else config,
        init_kwargs={
            # Hides the metrics that an interrupted run wrote after its checkpoint.
            "tensorboard": {"purge_step": first_step + 1 if first_step else None},
            "trackio": {"name": name, "resume": "allow", "config": config},
            "wandb": {"id": name, "name": name, "resume": "allow", "dir": str(output_dir)},
        },
    )


def _run_id(output_dir: Path) -> str:
    """Return this run's own id, the same whenever it is resumed."""
    run = read_run_file(output_dir)
    if "id" not in run:
        run["id"] = secrets.token_hex(4)
        write_json(output_dir / RUN_FILE, run)
    return run["id"]


def _keep_lines(log_file: Path, step: int) -> list[str]:
    """Keep the lines up to `step`, and return them: a resumed run repeats what came after its checkpoint."""
    if step == 0:
        log_file.unlink(missing_ok=True)
    if not log_file.exists():
        return []
    kept = []
    for line in log_file.read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError):  # a killed run was writing this line
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
    write_text(log_file, "".join(kept))
    return kept
