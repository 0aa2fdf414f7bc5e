"""The training loop, on Accelerate."""

from __future__ import annotations

import itertools
import math
import signal
import time
from collections.abc import Generator, Iterator
from contextlib import closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from tqdm.contrib.logging import logging_redirect_tqdm

from ..captioner.modeling_ituning import ITuningForCaptioning
from ..captioner.processing_ituning import ITuningProcessor
from ..data.records import first_names
from ..data.sampler import ImageBatchSampler
from ..data.stream import StreamSampler
from ..evaluation.scores import METRIC_NAMES
from ..hub.saving import save_captioner
from ..utils.distributed import raise_on_main, require_equal, sync_errors
from ..utils.files import write_json
from .arguments import TrainArguments
from .checkpoints import Checkpoints, TrainState
from .data import Batches, TrainingData
from .errors import NonFiniteLossError, RunStopped
from .identity import run_description, run_identity, training_record
from .objectives import CrossEntropy, SelfCritical
from .optimization import create_optimizer, create_schedule
from .page import RunPage
from .reporting import Reporter, read_run_file
from .run_folder import BEST, LAST, PAGE_FILE, RUN_FILE, new_folder, writing
from .signals import StopRequest
from .validation import Validator

# 30 halvings of PyTorch's initial scale: gradients that still overflow are infinite.
LEAST_LOSS_SCALE = 2.0**-14
LEAST_SEEN = 1000  # images, of which a stream may have the share `--max_unreadable_share` unreadable


class CaptionTrainer:
    """Trains a captioner's adapters.

    The optimizer step is the same for any number of processes: the sampler divides its images among them,
    and the loss is divided by the label tokens of all of them.
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
        self.args, self.captioner, self.processor, self.data = args, model, processor, data
        self.accelerator, self.stop = accelerator, stop
        self.output_dir = Path(args.output_dir)
        self.state = TrainState()
        self.identity = run_identity(args, model, data, accelerator)
        values = {name: value for name, value in self.identity.items() if name != "settings"}
        require_equal(accelerator, args.to_dict() | self.identity["settings"], values)
        self.batches = Batches(args, processor, accelerator, data.features)
        self.sampler = self._next_sampler()
        self.steps_per_epoch = self.sampler.steps_per_epoch  # None for a stream of unknown length
        steps = args.num_train_epochs * (self.steps_per_epoch or math.nan)
        self.total_steps = args.max_train_steps or math.ceil(steps)
        optimizer = create_optimizer(
            model, args.learning_rate, args.weight_decay, fused=accelerator.scaler is None
        )
        # Not prepared: Accelerate would step it once for each process.
        self.schedule = create_schedule(
            optimizer, args.lr_scheduler_type, args.warmup_ratio, self.total_steps
        )
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.objective: CrossEntropy | SelfCritical
        if args.objective == "cider":
            self.objective = SelfCritical(self.batches, model, data.train)  # type: ignore[arg-type] # no stream
        else:
            self.objective = CrossEntropy(self.batches)
        self.validator = Validator(self.model, data.evaluation, self.batches)
        self.checkpoints = Checkpoints(args, model, accelerator, self.optimizer, self.schedule, self.identity)

    def train(self, checkpoint: Path | None = None) -> TrainState:
        """Train from the start or from a checkpoint to the end; raises as `run.train` does."""
        if checkpoint is not None:
            self.state = self.checkpoints.restore(checkpoint)
            with sync_errors(self.accelerator):
                if self.accelerator.is_main_process and self.args.report_to:
                    read_run_file(self.output_dir)  # if it is missing, nothing is deleted
            if not self.checkpoints.rewind(checkpoint):
                self.accelerator.print("This run is complete: there is nothing left to do.", flush=True)
                return self.state
        with sync_errors(self.accelerator):
            if self.accelerator.is_main_process and checkpoint is None:
                write_json(self.output_dir / RUN_FILE, run_description(self.args, self.identity))
            self.reporter = self._create_reporter()
        try:
            with logging_redirect_tqdm():  # prints warnings above the progress bar
                if self.state.step == 0 and self.data.evaluation:
                    validation, samples = self.validator.run(0)
                    self.state.untrained_metric = validation.scores[self.args.metric_for_best_model]
                    self.reporter.validation("before training", validation, samples)
                self._train_steps()
            self.reporter.write_page()
            self._save_captioner(LAST)
        finally:
            self.reporter.close()
        return self.state

    def _create_reporter(self) -> Reporter:
        record = training_record(self.identity, self.data, 0, None, None, self.accelerator)
        page = RunPage(
            self.output_dir / PAGE_FILE,
            self.args,
            record,
            self.captioner.config,
            self.data.evaluation,
            self.total_steps,
        )
        return Reporter(self.args, self.accelerator, page, self.total_steps, self.state.step)

    def micro_batches(self) -> Generator[dict[str, Any], None, None]:
        """Yield this process's batches from the current step on, endlessly."""
        self.sampler, args = self._next_sampler(), self.args
        images, captions = self.data.train, args.captions_per_image
        collate = self.objective.collate
        loader = self.batches.loader(images, self.sampler, captions, args.augmentation, collate)
        for batch in loader:
            yield send_to_device(batch, self.accelerator.device, non_blocking=True)

    def _train_steps(self) -> None:
        self.captioner.train()
        self.stop.deferred, self.saved_step = True, self.state.step
        with closing(self.micro_batches()) as micro_batches:  # also after errors, to end the loader's workers
            self._take_steps(micro_batches)
        if self.state.step < self.total_steps:
            metric = METRIC_NAMES.get(self.args.metric_for_best_model, "loss")
            validations = self.state.validations_without_better
            self.reporter.print(f"stopped early: no better {metric} in {validations} validations")

    def _take_steps(self, micro_batches: Iterator[dict[str, Any]]) -> None:
        while self.state.step < self.total_steps and not self._out_of_patience():
            if self.steps_per_epoch and self.state.step % self.steps_per_epoch == 0:
                self.state.unreadable = 0
            started = time.perf_counter()
            # After a signal there is no next step; `_count` informs the other processes.
            count = 0 if self.stop.signum else self.args.gradient_accumulation_steps
            batches = list(itertools.islice(micro_batches, count))
            rate = float(self.schedule.get_last_lr()[0])
            means = self.optimizer_step(batches)
            self._log_step(means, rate, time.perf_counter() - started)
            run_ends = self.state.step == self.total_steps
            if self.data.evaluation and (self._is_due(self.args.eval_steps) or run_ends):
                self._validate()
            if self._is_due(self.args.checkpointing_steps) or run_ends or self._out_of_patience():
                self._save_checkpoint()

    def optimizer_step(self, batches: list[dict[str, Any]]) -> dict[str, float]:
        """Take one optimizer step over micro-batches; return its loss and the objective's metrics.

        Dropout's random state depends on the seed, the step and the process alone.
        """
        place = [self.args.seed, self.state.step, self.accelerator.process_index]
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]))
        counts = self._count(batches)
        _, processes, images = self.sampler.step_shape
        losses, metrics = [], []
        for position, batch in enumerate(batches):
            first = (position * processes + self.accelerator.process_index) * images
            share = self.objective.share(batch, counts, [self.args.seed, self.state.step, first])
            is_last = position == len(batches) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                loss = self.model(**share.inputs).loss
                # The processes' gradients are averaged, but the loss is a sum.
                self.accelerator.backward(loss * self.accelerator.num_processes)
            losses.append(loss.detach())
            metrics.append(loss.new_tensor(share.metrics))
        sums = torch.cat([torch.stack(losses).sum()[None], torch.stack(metrics).sum(dim=0)])
        mean, *others = self.accelerator.reduce(sums, "sum").tolist()
        if not math.isfinite(mean):
            self._stop_nonfinite(f"loss is {mean}", losses)
        norm = self.accelerator.clip_grad_norm_(
            self.captioner.parameters(), self.args.max_grad_norm or math.inf
        )
        scaler = self.accelerator.scaler
        if scaler is None and not math.isfinite(norm):
            self._stop_nonfinite(f"gradient norm is {norm}", losses)
        self.optimizer.step()
        if not self.accelerator.optimizer_step_was_skipped:
            self.schedule.step()
        elif (scale := scaler.get_scale()) < LEAST_LOSS_SCALE:  # fp16's scaler skips a step that overflows
            self._stop_nonfinite(f"gradient norm is infinite at a loss scale of {scale:g}", losses)
        self.optimizer.zero_grad()
        return {"loss": mean, **dict(zip(self.objective.metric_names, others, strict=True))}

    def _count(self, batches: list[dict[str, Any]]) -> list[int]:
        """Return the objective's counts of the step over all processes; count its unreadable images.

        The same reduction tells every process whether a signal reached any of them, so that all stop at the
        same step.
        """
        problems = [text for batch in batches for text in batch.pop("unreadable")]
        self.batches.log_unreadable(problems)
        counts = [*self.objective.count(batches), len(problems), int(self.stop.signum is not None)]
        summed = self.accelerator.reduce(torch.tensor(counts, device=self.accelerator.device), "sum")
        *counts, unreadable, stopped = summed.tolist()
        if stopped:
            self._stop_early()
        self.state.unreadable += unreadable
        # Without a known number: those so far, and so many that a few at the start are allowed.
        seen = max((self.state.step + 1) * math.prod(self.sampler.step_shape), LEAST_SEEN)
        self.batches.check_unreadable(self.state.unreadable, self.data.num_train_images or seen)
        return [max(count, 1) for count in counts]

    def _log_step(self, means: dict[str, float], rate: float, seconds: float) -> None:
        self.state.step += 1
        self.state.positions = self.sampler.next_position()
        speed = math.prod(self.sampler.step_shape) / seconds
        skipped = self.accelerator.optimizer_step_was_skipped
        self.reporter.step(self.state.step, means, rate, speed, skipped)

    def _validate(self) -> None:
        """Validate after an optimizer step; keep the captioner if it is the best so far."""
        validation, samples = self.validator.run(self.state.step)
        self.state.validation = asdict(validation)
        metric, threshold = self.args.metric_for_best_model, self.args.early_stopping_threshold
        seen = self.state.step * math.prod(self.sampler.step_shape)
        when = f"{seen:,} images" if self.epoch is None else f"epoch {self.epoch:.4g}"
        if self.state.update_best(validation.scores[metric], metric == "loss", threshold):
            self._save_captioner(BEST)
            is_worse = self.state.is_worse_than_untrained(metric == "loss")
            when += ", the best so far" + (", but worse than before training" if is_worse else "")
        self.reporter.validation(when, validation, samples)

    def _out_of_patience(self) -> bool:
        patience = self.args.early_stopping_patience
        return patience is not None and self.state.validations_without_better >= patience

    @property
    def epoch(self) -> float | None:
        """The passes over the training images so far, None if their number is not known."""
        return self.state.step / self.steps_per_epoch if self.steps_per_epoch else None

    def _next_sampler(self) -> ImageBatchSampler | StreamSampler:
        return self.batches.train_sampler(self.data.train, self.state.step, self.state.positions)

    def period(self, every: str) -> int:
        """Return the number of steps between what is done each epoch, or every so many steps."""
        return (self.steps_per_epoch or self.total_steps) if every == "epoch" else int(every)

    def _is_due(self, every: str) -> bool:
        return self.state.step % self.period(every) == 0

    def _stop_nonfinite(self, problem: str, losses: list[torch.Tensor]) -> NoReturn:
        """End the run before the optimizer step; every process must call it.

        Args:
            problem: What is not finite.
            losses: Of this process's micro-batches. If some are not finite, only their images are named.
        """
        keys = itertools.islice(self._next_sampler(), len(losses))
        images = gather_object(
            [
                (bool(loss.isfinite()), self.data.name_of(key))
                for loss, batch in zip(losses, keys, strict=True)
                for key in batch
                if not key.padding
            ]
        )
        names = [name for is_finite, name in images if not is_finite] or [name for _, name in images]
        message = (
            f"The {problem} at step {self.state.step + 1}, computed from {first_names(names, 8)}. Training "
            "stops; the weights and the checkpoints are unchanged. Check these images, or start a new run "
            "with a lower --learning_rate."
        )
        raise_on_main(self.accelerator, NonFiniteLossError(message))

    def _stop_early(self) -> NoReturn:
        if self.state.step > self.saved_step:
            self._save_checkpoint()
        # A signal that reached only another process was not Ctrl-C, which a terminal sends to all.
        when = f"after step {self.state.step} of {self.total_steps}"
        raise RunStopped(self.stop.signum or signal.SIGTERM, when)

    def _save_checkpoint(self) -> None:
        self._require_finite_weights()
        if self.state.positions is not None:  # each process knows how far the lanes are that it reads
            parts = gather_object([self.state.positions])
            self.state.positions = [max(lane) for lane in zip(*parts, strict=True)]
        self.checkpoints.save(self.state)
        self.saved_step = self.state.step

    def _save_captioner(self, name: str) -> None:
        self._require_finite_weights()
        step, validation = self.state.step, self.state.validation
        record = training_record(self.identity, self.data, step, self.epoch, validation, self.accelerator)
        with sync_errors(self.accelerator), writing(self.output_dir / name):
            if self.accelerator.is_main_process:
                with new_folder(self.output_dir / name) as draft:
                    save_captioner(self.captioner, self.processor, draft, training=record)

    def _require_finite_weights(self) -> None:
        """Refuse to save weights that the last step made infinite; they are the same on every process."""
        if not all(tensor.isfinite().all() for tensor in self.captioner.adapter_state_dict().values()):
            message = (
                f"The weights are not finite after step {self.state.step}: training stops and does not save "
                "them; the checkpoints are unchanged. Start a new run with a lower --learning_rate."
            )
            raise_on_main(self.accelerator, NonFiniteLossError(message))
