"""Trackers: TensorBoard, Trackio and Weights & Biases, through Accelerate."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from ..utils.json_files import parse_json
from .arguments import TrainArguments
from .checkpoints import RUN_FILE, write_json

PROJECT = "ituning"


def require_trackers(names: Sequence[str]) -> None:
    """Make sure, before long work, that the trackers are installed.

    Raises:
        ValueError: for one that is not, with the command that installs it.
    """
    available = {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        if name not in available:
            raise ValueError(
                f"--report_to {name}: it is not installed. Run pip install {name}, or leave it out."
            )


class Trackers:
    """Sends a run's numbers and sample captions to the accelerator's trackers, if it has any.

    A resumed run goes on where its checkpoint was, in the tracker's same run.

    Args:
        args: The settings; the trackers get them as the run's configuration.
        accelerator: Made with `log_with=args.report_to`.
        step: Optimizer steps taken before.
    """

    def __init__(self, args: TrainArguments, accelerator: Accelerator, step: int) -> None:
        self.accelerator = accelerator
        if not args.report_to or not accelerator.is_main_process:
            return
        output_dir = Path(args.output_dir)
        name, config = f"{output_dir.resolve().name}-{_run_id(output_dir)}", _flat(args.to_dict())
        accelerator.init_trackers(
            PROJECT,
            # Trackio forgets them when it goes on, and TensorBoard would add a second set beside the first.
            config=None if step else config,
            init_kwargs={
                # Hides the numbers that an interrupted run wrote after its checkpoint.
                "tensorboard": {"purge_step": step + 1 if step else None},
                "trackio": {"name": name, "resume": "allow", "config": config},
                "wandb": {"id": name, "name": name, "resume": "allow", "dir": str(output_dir)},
            },
        )

    def log(self, values: dict[str, float], step: int) -> None:
        """Send numbers."""
        self.accelerator.log(values, step=step)

    def log_samples(self, samples: dict[str, str], step: int) -> None:
        """Send captions, by image name, in the form that each tracker shows best."""
        if not samples:
            return
        rows = [list(sample) for sample in samples.items()]
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.log({f"samples/{name}": text for name, text in samples.items()}, step=step)
            elif tracker.name == "wandb":
                tracker.log_table("samples", columns=["image", "caption"], data=rows, step=step)
            else:
                import trackio

                table = trackio.Table(columns=["image", "caption"], data=rows)
                tracker.log({"samples": table}, step=step)


def _run_id(output_dir: Path) -> str:
    """Return an id that is this run's alone, the same whenever it is resumed."""
    run = parse_json((output_dir / RUN_FILE).read_text(encoding="utf-8"))
    if "id" not in run:
        run["id"] = secrets.token_hex(4)
        write_json(output_dir / RUN_FILE, run)
    return run["id"]


def _flat(settings: dict[str, Any]) -> dict[str, int | float | str | bool]:
    """Return the settings as TensorBoard takes them: numbers and text."""
    return {
        name: value if isinstance(value, (int, float, str)) else str(value)
        for name, value in settings.items()
    }
