"""Trackers: TensorBoard, Trackio and Weights & Biases, through Accelerate."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from ..utils.errors import UserError
from ..utils.files import write_json
from .arguments import TrainArguments
from .run_folder import RUN_FILE

PROJECT = "ituning"


def require_trackers(names: Sequence[str]) -> None:
    """Check that the trackers are installed, before long work.

    Raises:
        UserError: for one that is not, with the command that installs it.
    """
    available = {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        if name not in available:
            raise UserError(
                f"--report_to {name}: it is not installed. Run pip install {name}, or omit the tracker."
            )


class Trackers:
    """Sends a run's metrics and sample captions to the accelerator's trackers, if there are any.

    A resumed run continues in the tracker's same run, at its checkpoint's step.

    Args:
        args: The settings; the trackers get them as the run's configuration.
        accelerator: Created with `log_with=args.report_to`.
        step: Optimizer steps taken before.
    """

    def __init__(self, args: TrainArguments, accelerator: Accelerator, step: int) -> None:
        self.accelerator = accelerator
        if not args.report_to or not accelerator.is_main_process:
            return
        output_dir = Path(args.output_dir)
        name = f"{output_dir.resolve().name}-{_run_id(output_dir)}"
        # TensorBoard takes numbers and text only.
        config = {
            key: value if isinstance(value, (int, float, str)) else str(value)
            for key, value in args.to_dict().items()
        }
        accelerator.init_trackers(
            PROJECT,
            # Trackio loses them when it resumes, and TensorBoard would add a second set.
            config=None if step else config,
            init_kwargs={
                # Hides the metrics that an interrupted run wrote after its checkpoint.
                "tensorboard": {"purge_step": step + 1 if step else None},
                "trackio": {"name": name, "resume": "allow", "config": config},
                "wandb": {"id": name, "name": name, "resume": "allow", "dir": str(output_dir)},
            },
        )

    def log(self, values: dict[str, float], step: int) -> None:
        """Send metrics."""
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
    """Return this run's own id, the same whenever it is resumed."""
    run = json.loads((output_dir / RUN_FILE).read_text(encoding="utf-8"))
    if "id" not in run:
        run["id"] = secrets.token_hex(4)
        write_json(output_dir / RUN_FILE, run)
    return run["id"]
