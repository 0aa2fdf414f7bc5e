"""Save, restore and delete checkpoints."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from accelerate import Accelerator
from accelerate.utils import RNG_STATE_NAME, broadcast_object_list, load
from safetensors.torch import save_file
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
    CHECKPOINTS,
    LAST,
    LOG_FILE,
    STATE_FILE,
    checkpoint_folder,
    list_checkpoints,
    remove_folder,
    shared_folder,
    writing,
)

logger = logging.getLogger(__name__)

ADAPTER_FILE = "adapter.safetensors"


@dataclass
class TrainState:
    """The progress of a run, without the model, the optimizer and the random states.

    Args:
        step: Optimizer steps taken.
        unreadable: Images of this epoch that could not be read.
        best_metric: The best validation's `--metric_for_best_model`, None before the first validation.
        best_step: The step of that validation.
        validations_without_better: Validations since the last one that counted as an improvement.
        validation: The last one after a step, as a `ValidationRecord` by name.
    """

    step: int = 0
    unreadable: int = 0
    best_metric: float | None = None
    best_step: int | None = None
    validations_without_better: int = 0
    validation: dict[str, Any] | None = None
    untrained_metric: float | None = None

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

    A checkpoint contains the adapter, the optimizer, the schedule, the gradient scaler, the random states of
    each process and the run's progress, but only fingerprints of the frozen weights.

    The schedule is stored as JSON: Accelerate would store it as a pickle, which can run code.
    """

    def __init__(
        self,
        args: TrainArguments,
        model: ITuningForCaptioning,
        accelerator: Accelerator,
        schedule: LRScheduler,
        identity: dict[str, Any],
    ) -> None:
        self.output_dir, self.max_checkpoints = Path(args.output_dir), args.max_checkpoints
        self.captioner, self.accelerator = model, accelerator
        self.schedule, self.identity = schedule, identity
        accelerator.register_save_state_pre_hook(self._save_adapter)
        accelerator.register_load_state_pre_hook(self._load_adapter)

    def save(self, state: TrainState) -> None:
        """Write a checkpoint, then delete the oldest; raise a TrainingError if it cannot be written."""
        main = self.accelerator.is_main_process
        with shared_folder(self.accelerator, checkpoint_folder(self.output_dir, state.step)) as draft:
            try:
                self.accelerator.save_state(str(draft))
            except RuntimeError as error:  # of PyTorch's writer
                raise OSError(str(error)) from error
            if main:
                sync(self.output_dir / LOG_FILE)  # a resumed run keeps its lines up to the checkpoint
                progress = {"state": asdict(state), "schedule": self.schedule.state_dict()}
                write_json(draft / STATE_FILE, progress | self.identity)
        with sync_errors(self.accelerator), writing(self.output_dir / CHECKPOINTS):
            if main:
                self._remove_old()

    def restore(self, checkpoint: Path) -> TrainState:
        """Load a checkpoint; changes nothing on disk.

        Raises:
            UserError: if it is damaged, or of other models, data or settings.
        """
        try:
            saved = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
            state, schedule = TrainState(**saved["state"]), saved["schedule"]
            # Accelerate continues without random states that it cannot read, and logs nothing.
            random_states = checkpoint / f"{RNG_STATE_NAME}_{self.accelerator.process_index}.pkl"
            for file in {random_states, *checkpoint.glob("*.pkl"), *checkpoint.glob("*.bin")}:
                load(file, map_location="cpu")
        # RuntimeError is that of PyTorch's reader.
        except (OSError, UnpicklingError, EOFError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise _damaged(checkpoint, error) from error
        check_same_run(saved, self.identity, checkpoint)
        try:
            self.accelerator.load_state(str(checkpoint))
        except (OSError, CaptionerError) as error:
            raise _damaged(checkpoint, error) from error
        self.schedule.load_state_dict(schedule)
        if not (self.output_dir / BEST).exists():  # deleted by the user: the next validation makes it again
            state.best_metric = state.best_step = None
        return state

    def rewind(self, checkpoint: Path) -> bool:
        """Delete what the run wrote after a checkpoint; do nothing and return False if it is complete."""
        newest = list_checkpoints(self.output_dir)[-1].resolve()
        complete = (self.output_dir / LAST).exists() and checkpoint.resolve() == newest
        complete = broadcast_object_list([complete])[0]
        with sync_errors(self.accelerator), writing(self.output_dir):
            if self.accelerator.is_main_process and not complete:
                later = [f for f in list_checkpoints(self.output_dir) if f.name > checkpoint.name]
                for folder in (self.output_dir / LAST, *reversed(later)):
                    if folder.exists():
                        remove_folder(folder)
                        logger.warning("removed %s: the run resumes from %s", folder, checkpoint.name)
                self._remove_old()  # a killed run may not have come to it
        return not complete

    def _remove_old(self) -> None:
        for folder in list_checkpoints(self.output_dir)[: -self.max_checkpoints]:
            remove_folder(folder)

    def _save_adapter(self, models: list[Any], weights: list[Any], folder: str) -> None:
        weights.clear()  # they hold the frozen backbones
        if self.accelerator.is_main_process:
            save_file(self.captioner.adapter_state_dict(), Path(folder) / ADAPTER_FILE)

    def _load_adapter(self, models: list[Any], folder: str) -> None:
        models.clear()
        file = Path(folder) / ADAPTER_FILE
        self.captioner.load_adapter_state_dict(read_adapter_file(str(file)), str(file))


def _damaged(checkpoint: Path, error: Exception) -> UserError:
    problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return UserError(f"{checkpoint} is damaged ({problem}): resume from another checkpoint.")
