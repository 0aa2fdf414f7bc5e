"""The training loop, on Accelerate."""

from __future__ import annotations

import itertools
import math
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device, set_seed
from tqdm.contrib.logging import logging_redirect_tqdm

from ..captioner.modeling_ituning import ITuningForCaptioning
from ..captioner.processing_ituning import IGNORE_INDEX, ITuningProcessor
from ..utils.distributed import one_fate
from .arguments import TrainArguments
from .batches import BatchMaker, SkippedImages
from .checkpoints import LOG_FILE, RUN_FILE, find_checkpoint, write_json
from .errors import RunStopped
from .micro_batch import MicroBatch, random_state
from .nonfinite import GRADIENT, NonFiniteStop
from .optimization import create_optimizer, create_schedule
from .progress import Progress
from .record import training_record
from .run_store import RunStore
from .setup import TrainingData
from .signals import StopRequest
from .state import TrainState, run_identity, run_record
from .tracking import Trackers
from .validation import SCORE_NAMES, Validation, Validator


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
        self.identity = run_identity(args, model, data, accelerator)
        self.skipped = SkippedImages(args.max_unreadable_share, accelerator)
        self.batches = BatchMaker(args, processor, accelerator, data.features)
        self.sampler = self.batches.sampler(data.train, args.gradient_accumulation_steps)
        self.steps_per_epoch = self.sampler.steps_per_epoch
        self.total_steps = args.max_train_steps or math.ceil(args.num_train_epochs * self.steps_per_epoch)
        optimizer = create_optimizer(
            model, args.learning_rate, args.weight_decay, fused=accelerator.scaler is None
        )
        # Not prepared: Accelerate would step it once for each process.
        self.schedule = create_schedule(
            optimizer, args.lr_scheduler_type, args.warmup_ratio, self.total_steps
        )
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.nonfinite = NonFiniteStop(args, model, accelerator, self.batches, data.train)
        self.validator = Validator(
            args, self.model, processor, data.evaluation, self.batches, accelerator, self.skipped
        )
        self.store = RunStore(self.output_dir, model, processor, accelerator, self.schedule, self.identity)
        set_seed(args.seed + accelerator.process_index)  # dropout; everything else has seeds of its own

    def train(self) -> TrainState:
        """Run to the end, from the start or from the checkpoint that the settings name.

        Returns:
            How far it came and the best validation. The captioners are in `output_dir`: "best" and
            "last".

        Raises:
            NonFiniteLossError: at a NaN or infinite loss or gradient; the last checkpoint is whole, and what
                it was computed from is saved for `ituning replay`.
            TooManyUnreadableError: if more images are unreadable than allowed.
            TrainingError: if a checkpoint, a captioner or the log cannot be written.
            RunStopped: after a signal, when the checkpoint is saved.
            ValueError: if the checkpoint is of other settings or other backbones.
        """
        if self.args.resume_from_checkpoint is not None:
            checkpoint = find_checkpoint(self.output_dir, self.args.resume_from_checkpoint)
            self.restore(checkpoint)
            if not self.store.rewind(checkpoint, self.args.max_checkpoints):
                self.accelerator.print("This run is complete: there is nothing left to do.", flush=True)
                return self.state
        elif self.accelerator.is_main_process:
            write_json(self.output_dir / RUN_FILE, run_record(self.args, self.identity))
        with one_fate(self.accelerator):
            self.trackers = Trackers(self.args, self.accelerator, self.state.step)
        self.progress = Progress(
            self.output_dir / LOG_FILE,
            self.total_steps,
            self.state.step,
            self.accelerator.is_main_process,
        )
        try:
            with logging_redirect_tqdm():  # a warning goes above the bar, not into it
                if self.state.step == 0 and self.data.evaluation:
                    self._report(self._run_validation(), "before training")
                self._train_steps()
                if self._out_of_patience() and self.state.step < self.total_steps:
                    self._say_why_early()
            self._save_captioner("last")
        finally:
            self.progress.close()
        return self.state

    def _train_steps(self) -> None:
        self.captioner.train()
        self.stop.deferred, self.saved_step = True, self.state.step
        steps = self._micro_batches()
        while self.state.step < self.total_steps and not self._out_of_patience():
            if self.state.step % self.steps_per_epoch == 0:
                self.state.unreadable = 0
            started = time.perf_counter()
            # After a signal there is no next step: `_count` tells the other processes.
            micro_batches = 0 if self.stop.signum else self.args.gradient_accumulation_steps
            batches = list(itertools.islice(steps, micro_batches))
            rate = float(self.schedule.get_last_lr()[0])
            loss = self._optimizer_step(batches)
            self._record(loss, rate, time.perf_counter() - started)
            run_ends = self.state.step == self.total_steps
            if self.data.evaluation and (self._is_due(self.args.eval_steps) or run_ends):
                self._validate()
            if self._is_due(self.args.checkpointing_steps) or run_ends or self._out_of_patience():
                self._save_checkpoint()

    def _optimizer_step(self, batches: list[dict[str, Any]]) -> float:
        """Take one optimizer step over micro-batches; return the mean loss of its label tokens."""
        num_items = self._count(batches)
        total = torch.zeros((), device=self.accelerator.device)
        computed: list[MicroBatch] = []
        for position, batch in enumerate(batches):
            before = random_state(self.accelerator.device)
            is_last = position == len(batches) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                loss = self.model(
                    **batch, num_items_in_batch=num_items, label_smoothing=self.args.label_smoothing
                ).loss
                # The processes' gradients are averaged, and theirs is a sum.
                self.accelerator.backward(loss * self.accelerator.num_processes)
            computed.append(MicroBatch(batch, num_items, before, loss.detach()))
            total += loss.detach()
        mean = float(self.accelerator.reduce(total, "sum"))
        if not math.isfinite(mean):
            self.nonfinite.end_step("loss", mean, self.state.step, computed)
        norm = self.accelerator.clip_grad_norm_(
            self.captioner.parameters(), self.args.max_grad_norm or math.inf
        )
        if self.accelerator.scaler is None and not math.isfinite(norm):
            self.nonfinite.end_step(GRADIENT, float(norm), self.state.step, computed)
        self.optimizer.step()
        if self.accelerator.optimizer_step_was_skipped:  # by fp16's scaler, at an overflow
            self.nonfinite.after_skipped_step(self.state.step, computed)
        else:
            self.schedule.step()
        self.optimizer.zero_grad()
        return mean

    def _count(self, batches: list[dict[str, Any]]) -> int:
        """Count the step's label tokens over all processes, and keep account of unreadable images.

        Whether a signal asked any of them to end goes the same way, so that all end at the same step.
        """
        problems = [text for batch in batches for text in batch.pop("unreadable")]
        self.skipped.name(problems)
        items = sum(int((batch["labels"][:, 1:] != IGNORE_INDEX).sum()) for batch in batches)
        counts = [items, len(problems), int(self.stop.signum is not None)]
        summed = self.accelerator.reduce(torch.tensor(counts, device=self.accelerator.device), "sum")
        items, unreadable, stopped = summed.tolist()
        if stopped:
            self._stop_early()
        self.state.unreadable += unreadable
        self.skipped.limit(self.state.unreadable, self.data.train)
        return max(items, 1)

    def _record(self, loss: float, rate: float, seconds: float) -> None:
        self.state.step += 1
        speed = math.prod(self.sampler.step_shape) / seconds
        self.progress.step(loss, rate, speed)
        record = {"step": self.state.step, "loss": loss, "learning_rate": rate}
        skipped = {"skipped": True} if self.accelerator.optimizer_step_was_skipped else {}
        self.progress.log(record | skipped)
        values = {"train/loss": loss, "train/learning_rate": rate, "train/images_per_second": speed}
        self.trackers.log(values, self.state.step)

    def _run_validation(self) -> Validation:
        loss = self.validator.loss()
        if not math.isfinite(loss):
            with one_fate(self.accelerator):
                found = self.validator.first_nonfinite()
            self.nonfinite.end_validation(loss, self.state.step, *found)
        return self.validator.describe(loss)

    def _validate(self) -> None:
        """Validate after an optimizer step; keep the captioner if it is the best so far."""
        validation = self._run_validation()
        metric = self.args.metric_for_best_model
        is_best = self.state.take_validation(
            validation.scores[metric], metric == "loss", self.args.early_stopping_threshold
        )
        self.state.validation = {
            "step": self.state.step,
            "scores": validation.scores,
            "num_scored": validation.num_scored,
        }
        if is_best:
            self._save_captioner("best")
        epoch = self.state.step / self.steps_per_epoch
        self._report(validation, f"epoch {epoch:.4g}" + (", the best so far" if is_best else ""))

    def _report(self, validation: Validation, when: str) -> None:
        step, scores = self.state.step, validation.scores
        self.progress.say("\n".join(validation.lines(f"step {step}, {when}")))
        record = {"step": step} | {f"validation_{name}": value for name, value in scores.items()}
        self.progress.log(record | ({"samples": validation.samples} if validation.samples else {}))
        self.trackers.log({f"validation/{name}": value for name, value in scores.items()}, step)
        self.trackers.log_samples(validation.samples, step)

    def _out_of_patience(self) -> bool:
        patience = self.args.early_stopping_patience
        return patience is not None and self.state.validations_without_better >= patience

    def _say_why_early(self) -> None:
        metric = SCORE_NAMES[self.args.metric_for_best_model]
        self.progress.say(
            f"stopped early: no better {metric} in {self.state.validations_without_better} validations"
        )

    def _micro_batches(self) -> Iterator[dict[str, Any]]:
        """Yield this process's batches from the current step on, endlessly."""
        images, args = self.data.train, self.args
        sampler = self.batches.sampler(images, args.gradient_accumulation_steps, True, self.state.step)
        for batch in self.batches.loader(images, sampler, args.captions_per_image, args.augmentation):
            yield send_to_device(batch, self.accelerator.device, non_blocking=True)

    def _is_due(self, every: str) -> bool:
        """Tell whether what is done each epoch, or every so many steps, is to be done after this step."""
        period = self.steps_per_epoch if every == "epoch" else int(every)
        return self.state.step % period == 0

    def _stop_early(self) -> NoReturn:
        if self.state.step > self.saved_step:
            self._save_checkpoint()
        # Where the signal reached another process alone, it was no Ctrl-C, which a terminal sends to all.
        when = f"after step {self.state.step} of {self.total_steps}"
        raise RunStopped(self.stop.signum or signal.SIGTERM, when)

    def _save_captioner(self, name: str) -> None:
        self.nonfinite.require_finite_weights(self.state.step)
        record = training_record(self.identity, self.data, self.state, self.steps_per_epoch, self.accelerator)
        self.store.save_captioner(name, record)

    def _save_checkpoint(self) -> None:
        self.nonfinite.require_finite_weights(self.state.step)
        self.store.save_checkpoint(self.state, self.args.max_checkpoints)
        self.saved_step = self.state.step

    def restore(self, checkpoint: Path) -> None:
        """Go back to a checkpoint, in memory alone; errors as `RunStore.restore`."""
        self.state = self.store.restore(checkpoint)
