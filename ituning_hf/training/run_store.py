"""What a run keeps on disk: captioners to use, and checkpoints to go on from."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from accelerate import Accelerator
from accelerate.utils import RNG_STATE_NAME, broadcast_object_list, load
from safetensors.torch import save_file
from torch.optim.lr_scheduler import LRScheduler

from ..captioner.modeling_ituning import ITuningForCaptioning
from ..captioner.pretrained_ituning import read_adapter_file
from ..captioner.processing_ituning import ITuningProcessor
from ..hub.saving import save_captioner
from ..hub.training_record import TrainingRecord
from ..utils.distributed import one_fate
from .checkpoints import (
    CHECKPOINTS,
    LOG_FILE,
    STATE_FILE,
    checkpoint_folder,
    is_complete,
    remove_old_checkpoints,
    rewind,
    sync,
    write_json,
    writing,
)
from .shared_folder import shared_folder
from .state import TrainState, check_same_run, read_state

logger = logging.getLogger(__name__)

ADAPTER_FILE = "adapter.safetensors"


class RunStore:
    """Saves a run's captioners and checkpoints, and goes back to one; every process must take part.

    A checkpoint holds the adapter, the optimizer, the schedule, the gradient scaler, each process's random
    states and the run's progress; of the frozen weights the fingerprints alone.

    Args:
        output_dir: The run's folder.
        model: The captioner.
        processor: Its processor; saved beside every captioner.
        accelerator: Has the optimizer prepared.
        schedule: The learning rate's. It is stored as JSON: what is registered with Accelerate comes back
            from a pickle, which runs code where somebody else wrote it.
        identity: What a checkpoint must agree with, as `run_identity` gives it.
    """

    def __init__(
        self,
        output_dir: Path,
        model: ITuningForCaptioning,
        processor: ITuningProcessor,
        accelerator: Accelerator,
        schedule: LRScheduler,
        identity: dict[str, Any],
    ) -> None:
        self.output_dir, self.captioner, self.processor = output_dir, model, processor
        self.accelerator, self.schedule, self.identity = accelerator, schedule, identity
        accelerator.register_save_state_pre_hook(self._save_adapter_alone)
        accelerator.register_load_state_pre_hook(self._load_adapter_alone)

    def save_checkpoint(self, state: TrainState, max_checkpoints: int) -> None:
        """Write a checkpoint, then delete all but the newest.

        Raises:
            TrainingError: if it cannot be written; those before are whole.
        """
        main = self.accelerator.is_main_process
        with shared_folder(self.accelerator, checkpoint_folder(self.output_dir, state.step)) as draft:
            self.accelerator.save_state(str(draft))
            if main:
                sync(self.output_dir / LOG_FILE)  # a resumed run keeps its lines up to the checkpoint
                progress = {"state": asdict(state), "schedule": self.schedule.state_dict()}
                write_json(draft / STATE_FILE, progress | self.identity)
        with one_fate(self.accelerator), writing(self.output_dir / CHECKPOINTS):
            if main:
                remove_old_checkpoints(self.output_dir, max_checkpoints)

    def save_captioner(self, name: str, training: TrainingRecord) -> None:
        """Write a captioner and how it came about, in place of the one of that name."""
        with shared_folder(self.accelerator, self.output_dir / name) as draft:
            if self.accelerator.is_main_process:
                save_captioner(self.captioner, self.processor, draft, training=training)

    def restore(self, checkpoint: Path) -> TrainState:
        """Go back to a checkpoint, in memory alone.

        Raises:
            ValueError: if it is damaged, or of other settings or other backbones.
        """
        saved = read_state(checkpoint)
        check_same_run(saved, self.identity, checkpoint)
        try:
            # Accelerate goes on without random states that it cannot read, and says nothing.
            load(checkpoint / f"{RNG_STATE_NAME}_{self.accelerator.process_index}.pkl")
            self.accelerator.load_state(str(checkpoint))
            self.schedule.load_state_dict(saved["schedule"])
            state = TrainState(**saved["state"])
        except (UnpicklingError, EOFError, OSError, RuntimeError, KeyError, TypeError) as error:
            problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise ValueError(
                f"{checkpoint} is damaged ({problem}): resume from another checkpoint."
            ) from error
        if not (self.output_dir / "best").exists():  # somebody removed it: the next validation makes it
            state.best_metric = state.best_step = None
        return state

    def rewind(self, checkpoint: Path, max_checkpoints: int) -> bool:
        """Clear away what a run did after a checkpoint, since it does that again.

        Of those before it the newest are kept: a run may have ended between writing one and deleting another.

        Returns:
            False, with nothing touched, if the run had nothing left to do there.
        """
        complete = broadcast_object_list([is_complete(self.output_dir, checkpoint)])[0]
        with one_fate(self.accelerator), writing(self.output_dir):
            if self.accelerator.is_main_process and not complete:
                for folder in rewind(self.output_dir, checkpoint):
                    logger.warning("removed %s: the run makes it again from %s on", folder, checkpoint.name)
                remove_old_checkpoints(self.output_dir, max_checkpoints)
        return not complete

    def _save_adapter_alone(self, models: list[Any], weights: list[Any], folder: str) -> None:
        weights.clear()  # they hold the frozen backbones
        if self.accelerator.is_main_process:
            save_file(self.captioner.adapter_state_dict(), Path(folder) / ADAPTER_FILE)

    def _load_adapter_alone(self, models: list[Any], folder: str) -> None:
        models.clear()
        file = Path(folder) / ADAPTER_FILE
        self.captioner.load_adapter_state_dict(read_adapter_file(str(file)), str(file))
