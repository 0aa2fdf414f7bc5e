"""The training loop, on Accelerate."""

from __future__ import annotations

import itertools
import logging
import math
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, send_to_device, set_seed
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from tqdm.contrib.logging import logging_redirect_tqdm

from ..checkpoint_ituning import read_adapter_file
from ..data import CaptionDataset, CaptionedImage, Collator, ImageBatchSampler
from ..modeling_ituning import ITuningForCaptioning
from ..processing_ituning import IGNORE_INDEX, ITuningProcessor
from ..saving import save_captioner
from .arguments import TrainArguments
from .checkpoints import (
    CHECKPOINTS,
    LOG_FILE,
    RUN_FILE,
    STATE_FILE,
    checkpoint_folder,
    find_checkpoint,
    is_complete,
    remove_old_checkpoints,
    rewind,
    sync,
    write_json,
    writing,
)
from .errors import NonFiniteLossError, RunStopped, TooManyUnreadableError
from .optimization import create_optimizer, create_schedule
from .processes import one_fate, shared_folder
from .progress import Progress
from .setup import TrainingData
from .signals import StopRequest, ignore_stop_signals
from .state import TrainState, check_same_run, read_state, run_identity

logger = logging.getLogger(__name__)

ADAPTER_FILE = "adapter.safetensors"


class CaptionTrainer:
    """Trains a captioner's adapters.

    The optimizer step is the same for any number of processes: the sampler divides its images among them,
    and the loss is divided by the label tokens of all of them.

    Args:
        args: The settings.
        model: The captioner.
        processor: Its processor; saved beside every captioner.
        data: What to train and validate on.
        accelerator: Where and in what precision.
        stop: Whether a signal asked the run to end.
    """

    def __init__(
        self,
        args: TrainArguments,
        model: ITuningForCaptioning,
        processor: ITuningProcessor,
        data: TrainingData,
        accelerator: Accelerator,
        stop: StopRequest,
    ) -> None:
        self.args, self.processor, self.data, self.accelerator = args, processor, data, accelerator
        self.output_dir = Path(args.output_dir)
        self.captioner, self.stop = model, stop
        self.state = TrainState()
        self.identity = run_identity(args, model, accelerator)
        self.named: set[str] = set()  # images that could not be read, each named once
        self.sampler = self._sampler(data.train, args.gradient_accumulation_steps, shuffle=True)
        self.steps_per_epoch = self.sampler.steps_per_epoch
        self.total_steps = args.max_train_steps or math.ceil(args.num_train_epochs * self.steps_per_epoch)
        optimizer = create_optimizer(model, args.learning_rate, args.weight_decay)
        # Not prepared: Accelerate would step it once for each process.
        self.schedule = create_schedule(
            optimizer, args.lr_scheduler_type, args.warmup_ratio, self.total_steps
        )
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        accelerator.register_for_checkpointing(self.schedule)
        accelerator.register_save_state_pre_hook(self._save_adapter_alone)
        accelerator.register_load_state_pre_hook(self._load_adapter_alone)
        set_seed(args.seed + accelerator.process_index)  # dropout; everything else has seeds of its own

    def train(self) -> TrainState:
        """Run to the end, from the start or from the checkpoint that the settings name.

        Returns:
            How far it came and the best validation loss. The captioners are in `output_dir`: "best" and
            "last".

        Raises:
            NonFiniteLossError: at a NaN or infinite loss; the last checkpoint is whole.
            TooManyUnreadableError: if more images are unreadable than allowed.
            TrainingError: if a checkpoint, a captioner or the log cannot be written.
            RunStopped: after a signal, when the checkpoint is saved.
            ValueError: if the checkpoint is of other settings or other backbones.
        """
        if self.args.resume_from_checkpoint is not None:
            if self._resume(find_checkpoint(self.output_dir, self.args.resume_from_checkpoint)):
                self.accelerator.print("This run is complete: there is nothing left to do.", flush=True)
                return self.state
        elif self.accelerator.is_main_process:
            write_json(self.output_dir / RUN_FILE, self.identity)
        self.progress = Progress(
            self.output_dir / LOG_FILE,
            self.total_steps,
            self.state.step,
            self.accelerator.is_main_process,
        )
        try:
            with logging_redirect_tqdm():  # a warning goes above the bar, not into it
                if self.state.step == 0 and self.data.evaluation:
                    self._report_validation(self.evaluate(), "before training")
                self._train_steps()
            self._save_captioner("last")
        finally:
            self.progress.close()
        return self.state

    def _train_steps(self) -> None:
        self.captioner.train()
        self.stop.deferred, self.saved_step = True, self.state.step
        steps = self._micro_batches()
        while self.state.step < self.total_steps:
            if self.state.step % self.steps_per_epoch == 0:
                self.state.unreadable = 0
            started = time.perf_counter()
            # After a signal there is no next step: `_count` tells the other processes.
            micro_batches = 0 if self.stop.signum else self.args.gradient_accumulation_steps
            batches = list(itertools.islice(steps, micro_batches))
            rate = float(self.schedule.get_last_lr()[0])
            loss = self._optimizer_step(batches)
            self._record(loss, rate, time.perf_counter() - started)
            epoch_ends = self.state.step % self.steps_per_epoch == 0
            run_ends = self.state.step == self.total_steps
            if self.data.evaluation and (epoch_ends or run_ends):
                self._validate()
            if self._checkpoint_is_due(epoch_ends) or run_ends:
                self._save_checkpoint()

    def _optimizer_step(self, batches: list[dict[str, Any]]) -> float:
        """Take one optimizer step over micro-batches; return the mean loss of its label tokens."""
        num_items = self._count(batches)
        total = torch.zeros((), device=self.accelerator.device)
        for position, batch in enumerate(batches):
            is_last = position == len(batches) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                loss = self.model(
                    **batch, num_items_in_batch=num_items, label_smoothing=self.args.label_smoothing
                ).loss
                # The processes' gradients are averaged, and theirs is a sum.
                self.accelerator.backward(loss * self.accelerator.num_processes)
            total += loss.detach()
        mean = float(self.accelerator.reduce(total, "sum"))
        self._require_finite("loss", mean, self.state.step + 1)
        norm = self.accelerator.clip_grad_norm_(
            self.captioner.parameters(), self.args.max_grad_norm or math.inf
        )
        if self.accelerator.scaler is None:  # fp16's scaler skips such a step and goes on
            self._require_finite("gradient's norm", float(norm), self.state.step + 1)
        self.optimizer.step()
        if not self.accelerator.optimizer_step_was_skipped:  # by fp16's scaler, at an overflow
            self.schedule.step()
        self.optimizer.zero_grad()
        return mean

    def _count(self, batches: list[dict[str, Any]]) -> int:
        """Count the step's label tokens over all processes, and keep account of unreadable images.

        Whether a signal asked any of them to end goes the same way, so that all end at the same step.
        """
        problems = [text for batch in batches for text in batch.pop("unreadable")]
        self._name(problems)
        items = sum(int((batch["labels"][:, 1:] != IGNORE_INDEX).sum()) for batch in batches)
        counts = [items, len(problems), int(self.stop.signum is not None)]
        summed = self.accelerator.reduce(torch.tensor(counts, device=self.accelerator.device), "sum")
        items, unreadable, stopped = summed.tolist()
        if stopped:
            self._stop_early()
        self.state.unreadable += unreadable
        self._limit_unreadable(self.state.unreadable, self.data.train)
        return max(items, 1)

    def _name(self, problems: list[str]) -> None:
        """Name each image that could not be read, once."""
        for text in problems:
            if text not in self.named:
                self.named.add(text)
                logger.warning("skipped: %s", text)

    def _limit_unreadable(self, unreadable: int, images: list[CaptionedImage]) -> None:
        allowed = int(self.args.max_unreadable_share * len(images))
        if unreadable > allowed or unreadable == len(images):
            raise TooManyUnreadableError(
                f"{unreadable} of {len(images)} images could not be read, and --max_unreadable_share "
                f"{self.args.max_unreadable_share} allows {allowed} (one of them: "
                f"{min(self.named, default='on another process')}). Mend or remove them, or raise it."
            )

    def _record(self, loss: float, rate: float, seconds: float) -> None:
        self.state.step += 1
        self.progress.step(loss, rate, math.prod(self.sampler.step_shape) / seconds)
        self.progress.log({"step": self.state.step, "loss": loss, "learning_rate": rate})

    def _require_finite(self, what: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            raise NonFiniteLossError(
                f"The {what} is {value} at step {step} (epoch {step / self.steps_per_epoch:.2f}), so "
                f"training stops; the checkpoints in {self.output_dir} are as they were before. Try a lower "
                "--learning_rate, or --mixed_precision bf16 instead of fp16."
            )

    @torch.no_grad()
    def evaluate(self) -> float:
        """Return the mean loss of the validation captions' tokens, without label smoothing."""
        self.captioner.eval()
        sampler = self._sampler(self.data.evaluation, 1, shuffle=False)
        batches = list(itertools.islice(sampler, sampler.steps_per_epoch))
        most = max(len(image.captions) for image in self.data.evaluation)
        captions = min(most, self.args.captions_per_image)
        sums = torch.zeros(3, dtype=torch.float64, device=self.accelerator.device)
        for batch in self._loader(self.data.evaluation, batches, captions):
            problems = batch.pop("unreadable")
            self._name(problems)
            batch = send_to_device(batch, self.accelerator.device)
            items = (batch["labels"][:, 1:] != IGNORE_INDEX).sum()
            loss = self.model(**batch, num_items_in_batch=1).loss
            sums += torch.stack([loss.double(), items.double(), items.new_tensor(len(problems)).double()])
        total, items, unreadable = self.accelerator.reduce(sums, "sum").tolist()
        self._limit_unreadable(int(unreadable), self.data.evaluation)
        self._require_finite("validation loss", total / items, self.state.step)
        self.captioner.train()
        return total / items

    def _validate(self) -> None:
        loss = self.evaluate()
        is_best = self.state.best_loss is None or loss < self.state.best_loss
        if is_best:
            self.state.best_loss, self.state.best_step = loss, self.state.step
            self._save_captioner("best")
        epoch = self.state.step / self.steps_per_epoch
        self._report_validation(loss, f"epoch {epoch:.4g}" + (", the best so far" if is_best else ""))

    def _report_validation(self, loss: float, when: str) -> None:
        self.progress.say(f"validation loss {loss:.4f}  (step {self.state.step}, {when})")
        self.progress.log({"step": self.state.step, "validation_loss": loss})

    def _sampler(
        self, images: list[CaptionedImage], accumulation_steps: int, shuffle: bool, start_step: int = 0
    ) -> ImageBatchSampler:
        return ImageBatchSampler(
            num_images=len(images),
            per_device_batch_size=self.args.per_device_train_batch_size,
            gradient_accumulation_steps=accumulation_steps,
            num_processes=self.accelerator.num_processes,
            process_index=self.accelerator.process_index,
            seed=self.args.seed,
            shuffle=shuffle,
            start_step=start_step,
        )

    def _loader(self, images: list[CaptionedImage], batches: Any, captions: int) -> DataLoader:
        return DataLoader(
            CaptionDataset(images, self.processor, captions, self.args.max_caption_tokens, self.args.seed),
            batch_sampler=batches,
            collate_fn=Collator(self.processor, captions),
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
            worker_init_fn=ignore_stop_signals,
            # Its own, so that making a loader (a resumed run makes one more) draws nothing from the
            # generator that dropout uses.
            generator=torch.Generator(),
        )

    def _micro_batches(self) -> Iterator[dict[str, Any]]:
        """Yield this process's batches from the current step on, endlessly."""
        sampler = self._sampler(self.data.train, self.args.gradient_accumulation_steps, True, self.state.step)
        for batch in self._loader(self.data.train, sampler, self.args.captions_per_image):
            yield send_to_device(batch, self.accelerator.device, non_blocking=True)

    def _checkpoint_is_due(self, epoch_ends: bool) -> bool:
        every = self.args.checkpointing_steps
        return epoch_ends if every == "epoch" else self.state.step % int(every) == 0

    def _stop_early(self) -> NoReturn:
        if self.state.step > self.saved_step:
            self._save_checkpoint()
        # Where the signal reached another process alone, it was no Ctrl-C, which a terminal sends to all.
        when = f"after step {self.state.step} of {self.total_steps}"
        raise RunStopped(self.stop.signum or signal.SIGTERM, when)

    def _save_checkpoint(self) -> None:
        target = checkpoint_folder(self.output_dir, self.state.step)
        main = self.accelerator.is_main_process
        with shared_folder(self.accelerator, target) as draft:
            self.accelerator.save_state(str(draft))
            if main:
                sync(self.output_dir / LOG_FILE)  # a resumed run keeps its lines up to the checkpoint
                write_json(draft / STATE_FILE, {"state": asdict(self.state)} | self.identity)
        self.saved_step = self.state.step
        with one_fate(self.accelerator), writing(self.output_dir / CHECKPOINTS):
            if main:
                remove_old_checkpoints(self.output_dir, self.args.max_checkpoints)

    def _save_captioner(self, name: str) -> None:
        with shared_folder(self.accelerator, self.output_dir / name) as draft:
            if self.accelerator.is_main_process:
                save_captioner(self.captioner, self.processor, draft)

    def _save_adapter_alone(self, models: list[Any], weights: list[Any], folder: str) -> None:
        weights.clear()  # they hold the frozen backbones
        if self.accelerator.is_main_process:
            save_file(self.captioner.adapter_state_dict(), Path(folder) / ADAPTER_FILE)

    def _load_adapter_alone(self, models: list[Any], folder: str) -> None:
        models.clear()
        file = Path(folder) / ADAPTER_FILE
        self.captioner.load_adapter_state_dict(read_adapter_file(str(file)), str(file))

    def _resume(self, checkpoint: Path) -> bool:
        """Go back to a checkpoint; return whether the run was complete there."""
        saved = read_state(checkpoint)
        check_same_run(saved, self.identity, checkpoint)
        self.accelerator.load_state(str(checkpoint))
        self.state = TrainState(**saved["state"])
        complete = broadcast_object_list([is_complete(self.output_dir, checkpoint)])[0]
        with one_fate(self.accelerator), writing(self.output_dir):
            if self.accelerator.is_main_process and not complete:
                rewind(self.output_dir, checkpoint)
        return complete
