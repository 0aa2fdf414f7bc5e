"""The training loop, on Accelerate."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device, set_seed
from safetensors.torch import save_file
from tqdm.contrib.logging import logging_redirect_tqdm

from ..checkpoint_ituning import read_adapter_file
from ..modeling_ituning import ITuningForCaptioning
from ..processing_ituning import IGNORE_INDEX, ITuningProcessor
from ..saving import save_captioner
from .arguments import TrainArguments
from .batches import BatchMaker, SkippedImages
from .checkpoints import (
    RUN_FILE,
    STATE_FILE,
    atomic_folder,
    checkpoint_folder,
    draft_of,
    find_checkpoint,
    remove_old_checkpoints,
    write_json,
)
from .errors import NonFiniteLossError
from .optimization import create_optimizer, create_schedule
from .progress import Progress
from .setup import TrainingData
from .state import TrainState, check_same_run, read_state, run_identity
from .tracking import Trackers
from .validation import SCORE_NAMES, Validation, Validator

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
    """

    def __init__(
        self,
        args: TrainArguments,
        model: ITuningForCaptioning,
        processor: ITuningProcessor,
        data: TrainingData,
        accelerator: Accelerator,
    ) -> None:
        self.args, self.processor, self.data, self.accelerator = args, processor, data, accelerator
        self.output_dir = Path(args.output_dir)
        self.captioner = model
        self.state = TrainState()
        self.identity = run_identity(args, model, accelerator)
        self.skipped = SkippedImages(args.max_unreadable_share)
        self.batches = BatchMaker(args, processor, accelerator)
        self.sampler = self.batches.sampler(data.train, args.gradient_accumulation_steps)
        self.steps_per_epoch = self.sampler.steps_per_epoch
        self.total_steps = args.max_train_steps or math.ceil(args.num_train_epochs * self.steps_per_epoch)
        optimizer = create_optimizer(model, args.learning_rate, args.weight_decay)
        # Not prepared: Accelerate would step it once for each process.
        self.schedule = create_schedule(
            optimizer, args.lr_scheduler_type, args.warmup_ratio, self.total_steps
        )
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.validator = Validator(args, self.model, processor, data.evaluation, accelerator, self.skipped)
        accelerator.register_for_checkpointing(self.schedule)
        accelerator.register_save_state_pre_hook(self._save_adapter_alone)
        accelerator.register_load_state_pre_hook(self._load_adapter_alone)
        set_seed(args.seed + accelerator.process_index)  # dropout; everything else has seeds of its own

    def train(self) -> TrainState:
        """Run to the end, from the start or from the checkpoint that the settings name.

        Returns:
            How far it came and the best validation. The captioners are in `output_dir`: "best" and
            "last".

        Raises:
            NonFiniteLossError: at a NaN or infinite loss; the last checkpoint is whole.
            TooManyUnreadableError: if more images are unreadable than allowed.
            ValueError: if the checkpoint is of other settings or other backbones.
        """
        if self.args.resume_from_checkpoint is not None:
            self._resume(find_checkpoint(self.output_dir, self.args.resume_from_checkpoint))
        elif self.accelerator.is_main_process:
            write_json(self.output_dir / RUN_FILE, self.identity)
        self.trackers = Trackers(self.args, self.accelerator, self.state.step)
        self.progress = Progress(
            self.output_dir / "log.jsonl",
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
        steps = self._micro_batches()
        while self.state.step < self.total_steps and not self._out_of_patience():
            if self.state.step % self.steps_per_epoch == 0:
                self.state.unreadable = 0
            started = time.perf_counter()
            batches = list(itertools.islice(steps, self.args.gradient_accumulation_steps))
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
        """Count the step's label tokens over all processes, and keep account of unreadable images."""
        problems = [text for batch in batches for text in batch.pop("unreadable")]
        self.skipped.name(problems)
        items = sum(int((batch["labels"][:, 1:] != IGNORE_INDEX).sum()) for batch in batches)
        counts = torch.tensor([items, len(problems)], device=self.accelerator.device)
        items, unreadable = self.accelerator.reduce(counts, "sum").tolist()
        self.state.unreadable += unreadable
        self.skipped.limit(self.state.unreadable, self.data.train)
        return max(items, 1)

    def _record(self, loss: float, rate: float, seconds: float) -> None:
        self.state.step += 1
        speed = math.prod(self.sampler.step_shape) / seconds
        self.progress.step(loss, rate, speed)
        self.progress.log({"step": self.state.step, "loss": loss, "learning_rate": rate})
        values = {"train/loss": loss, "train/learning_rate": rate, "train/images_per_second": speed}
        self.trackers.log(values, self.state.step)

    def _require_finite(self, what: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            raise NonFiniteLossError(
                f"The {what} is {value} at step {step} (epoch {step / self.steps_per_epoch:.2f}), so "
                f"training stops; the checkpoints in {self.output_dir} are as they were before. Try a lower "
                "--learning_rate, or --mixed_precision bf16 instead of fp16."
            )

    def _run_validation(self) -> Validation:
        validation = self.validator.run()
        self._require_finite("validation loss", validation.scores["loss"], self.state.step)
        return validation

    def _validate(self) -> None:
        """Validate after an optimizer step; keep the captioner if it is the best so far."""
        validation = self._run_validation()
        metric = self.args.metric_for_best_model
        is_best = self.state.take_validation(
            validation.scores[metric], metric == "loss", self.args.early_stopping_threshold
        )
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

    def _save_checkpoint(self) -> None:
        target = checkpoint_folder(self.output_dir, self.state.step)
        with _shared_draft(self.accelerator, target) as draft:
            self.accelerator.save_state(str(draft))
            if self.accelerator.is_main_process:
                write_json(draft / STATE_FILE, {"state": asdict(self.state)} | self.identity)
        if self.accelerator.is_main_process:
            remove_old_checkpoints(self.output_dir, self.args.max_checkpoints)

    def _save_captioner(self, name: str) -> None:
        if self.accelerator.is_main_process:
            with atomic_folder(self.output_dir / name) as draft:
                save_captioner(self.captioner, self.processor, draft)
        self.accelerator.wait_for_everyone()

    def _save_adapter_alone(self, models: list[Any], weights: list[Any], folder: str) -> None:
        weights.clear()  # they hold the frozen backbones
        if self.accelerator.is_main_process:
            save_file(self.captioner.adapter_state_dict(), Path(folder) / ADAPTER_FILE)

    def _load_adapter_alone(self, models: list[Any], folder: str) -> None:
        models.clear()
        file = Path(folder) / ADAPTER_FILE
        self.captioner.load_adapter_state_dict(read_adapter_file(str(file)), str(file))

    def _resume(self, checkpoint: Path) -> None:
        saved = read_state(checkpoint)
        check_same_run(saved, self.identity, checkpoint)
        self.accelerator.load_state(str(checkpoint))
        self.state = TrainState(**saved["state"])


@contextmanager
def _shared_draft(accelerator: Accelerator, target: Path) -> Iterator[Path]:
    """Let all processes write into one `atomic_folder`, which the main process makes and puts in place."""
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
        yield draft_of(target)
        accelerator.wait_for_everyone()
        return
    with atomic_folder(target) as draft:
        accelerator.wait_for_everyone()
        yield draft
        accelerator.wait_for_everyone()
