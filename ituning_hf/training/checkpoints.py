"""Save, restore and delete checkpoints."""

from __future__ import annotations

import json
import logging
import math
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..captioner.configuration_ituning import CaptionerError
from ..captioner.modeling_ituning import ITuningForCaptioning
from ..captioner.pretrained_ituning import read_adapter_file
from ..utils.distributed import sync_errors
from ..utils.errors import UserError
from ..utils.files import sync, write_json
from .arguments import TrainArguments
from .identity import check_same_run
from .run_folder import (
    BEST,
    LAST,
    LOG_FILE,
    STATE_FILE,
    checkpoint_folder,
    list_checkpoints,
    new_folder,
    remove_folder,
    writing,
)

logger = logging.getLogger(__name__)

ADAPTER_FILE = "adapter.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"


@dataclass
class TrainState:
    """The progress of a run, without the model and the optimizer.

    Args:
        step: Optimizer steps taken.
        unreadable: Images of this epoch that could not be read.
        best_metric: The best validation's `--metric_for_best_model`, None before the first validation.
        best_step: The step of that validation.
        validations_without_better: Validations since the last one that counted as an improvement.
        validation: The last one after a step, as a `ValidationRecord` by name.
        positions: Of the lanes of a `ShardStream`; None for a dataset of known length.
    """

    step: int = 0
    unreadable: int = 0
    best_metric: float | None = None
    best_step: int | None = None
    validations_without_better: int = 0
    validation: dict[str, Any] | None = None
    untrained_metric: float | None = None
    positions: list[Any] | None = None

    def is_worse_than_untrained(self, lower_is_better: bool) -> bool:
        """Return whether the best captioner so far is worse than before training."""
        best, untrained = self.best_metric, self.untrained_metric
        if best is None or untrained is None:
            return False
        return best > untrained if lower_is_better else best < untrained

    def update_best(self, value: float, lower_is_better: bool, threshold: float) -> bool:
        """Account for a validation after the current step, and return whether it is the best so far.

        Args:
            value: Its metric.
            lower_is_better: Whether that is a loss.
            threshold: Smaller changes do not count as an improvement for early stopping.
        """
        best = self.best_metric
        gain = math.inf if best is None else best - value if lower_is_better else value - best
        self.validations_without_better = 0 if gain > threshold else self.validations_without_better + 1
        if gain > 0:
            self.best_metric, self.best_step = value, self.step
        return gain > 0


class Checkpoints:
    """Saves a run's checkpoints and restores them; every process must take part.

    A checkpoint contains the adapter, AdamW's moments, and everything else as JSON: the run's progress, the
    schedule, the gradient scaler, and fingerprints of the frozen weights and the data. It needs no random
    states, because each step has its own, and no pickles, which can run code. The main process alone writes
    and reads checkpoints, so the hosts of a run need no common folder.
    """

    def __init__(
        self,
        args: TrainArguments,
        model: ITuningForCaptioning,
        accelerator: Accelerator,
        optimizer: Optimizer,
        schedule: LRScheduler,
        identity: dict[str, Any],
    ) -> None:
        self.output_dir, self.max_checkpoints = Path(args.output_dir), args.max_checkpoints
        self.captioner, self.accelerator = model, accelerator
        self.optimizer, self.schedule, self.identity = optimizer, schedule, identity

    def save(self, state: TrainState) -> None:
        """Write a checkpoint, then delete the oldest; raise a TrainingError if it cannot be written."""
        folder = checkpoint_folder(self.output_dir, state.step)
        with sync_errors(self.accelerator), writing(folder):
            if self.accelerator.is_main_process:
                with new_folder(folder) as draft:
                    self._write(draft, state)
                self._remove_old()

    def restore(self, checkpoint: Path) -> TrainState:
        """Load a checkpoint; changes nothing on disk.

        Raises:
            UserError: if it is damaged, or of other models, data or settings.
        """
        parts = None
        with sync_errors(self.accelerator):
            if self.accelerator.is_main_process:
                parts = self._read(checkpoint)
        state, schedule, groups, scaler, adapter, moments = broadcast_object_list([parts])[0]
        with sync_errors(self.accelerator):
            try:
                self.captioner.load_adapter_state_dict(adapter, str(checkpoint / ADAPTER_FILE))
            except CaptionerError as error:
                raise _damaged(checkpoint, error) from error
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.schedule.load_state_dict(schedule)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(scaler)
        return state

    def rewind(self, checkpoint: Path) -> bool:
        """Delete what the run wrote after a checkpoint; do nothing and return False if it is complete."""
        resumes = False
        with sync_errors(self.accelerator), writing(self.output_dir):
            if self.accelerator.is_main_process:
                later = [f for f in list_checkpoints(self.output_dir) if f.name > checkpoint.name]
                last = self.output_dir / LAST
                resumes = bool(later) or not last.exists()
            if resumes:
                for folder in (last, *reversed(later)):
                    if folder.exists():
                        remove_folder(folder)
                        logger.warning("removed %s: the run resumes from %s", folder, checkpoint.name)
                self._remove_old()  # a killed run may not have come to it
        return broadcast_object_list([resumes])[0]

    def _remove_old(self) -> None:
        for folder in list_checkpoints(self.output_dir)[: -self.max_checkpoints]:
            remove_folder(folder)

    def _write(self, folder: Path, state: TrainState) -> None:
        sync(self.output_dir / LOG_FILE)  # a resumed run keeps its lines up to the checkpoint
        save_file(self.captioner.adapter_state_dict(), folder / ADAPTER_FILE)
        optimizer, scaler = self.optimizer.state_dict(), self.accelerator.scaler
        moments = {f"{i}.{key}": x for i, parts in optimizer["state"].items() for key, x in parts.items()}
        save_file(moments, folder / OPTIMIZER_FILE)
        progress = {
            "state": asdict(state),
            "schedule": self.schedule.state_dict(),
            "optimizer": optimizer["param_groups"],
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        write_json(folder / STATE_FILE, progress | self.identity)

    def _read(self, checkpoint: Path) -> tuple[Any, ...]:
        """Return the states of the run, the schedule, the optimizer's groups, the scaler, and the tensors."""
        try:
            saved = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
            state = TrainState(**saved["state"])
            states = state, saved["schedule"], saved["optimizer"], saved["scaler"]
            adapter = read_adapter_file(checkpoint / ADAPTER_FILE)
            moments: dict[int, dict[str, Tensor]] = defaultdict(dict)
            for name, tensor in load_file(checkpoint / OPTIMIZER_FILE).items():
                index, key = name.split(".")
                moments[int(index)][key] = tensor
        except (OSError, SafetensorError, CaptionerError, ValueError, KeyError, TypeError) as error:
            raise _damaged(checkpoint, error) from error
        check_same_run(saved, self.identity, checkpoint)
        if not (self.output_dir / BEST).exists():  # deleted by the user: the next validation makes it again
            state.best_metric = state.best_step = None
        return *states, adapter, moments


def _damaged(checkpoint: Path, error: Exception) -> UserError:
    problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return UserError(f"{checkpoint} is damaged ({problem}): resume from another checkpoint.")
