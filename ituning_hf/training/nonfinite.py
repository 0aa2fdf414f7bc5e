"""The end of a run whose numbers are not finite: told once, and kept to be looked at again."""

from __future__ import annotations

import itertools
import logging
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors.torch import save_file

from ..captioner.modeling_ituning import ITuningForCaptioning
from ..data.records import CaptionedImage, first_names
from ..utils.distributed import OtherProcessError, one_fate, tell_once
from ..utils.environment import library_versions
from .arguments import TrainArguments
from .batches import BatchMaker, image_names
from .checkpoints import list_checkpoints, remove_folder, write_json
from .errors import NonFiniteLossError, TrainingError
from .micro_batch import MicroBatch, gradients
from .shared_folder import shared_folder

logger = logging.getLogger(__name__)

REPORT_FILE = "nonfinite.json"
ADAPTER_FILE = "adapter.safetensors"
CONFIG_FILE = "config.json"  # Transformers' name
SHOWN_NAMES = 8
GRADIENT, VALIDATION = "gradient's norm", "validation loss"
# Thirty halvings of PyTorch's first scale: gradients that overflow still do so by themselves.
LEAST_LOSS_SCALE = 2.0**-14


@dataclass(frozen=True)
class Finding:
    """What is not finite, and where.

    Args:
        what: "loss", "gradient's norm" or "validation loss".
        value: NaN or infinite.
        step: The optimizer step that was being taken, or that a validation followed.
        epoch: That step, in passes over the training images.
        loss_scale: What fp16's scaler multiplied the loss by; 1 without one.
    """

    what: str
    value: float
    step: int
    epoch: float
    loss_scale: float = 1.0

    @property
    def folder_name(self) -> str:
        """What the folder is called that tells of it."""
        return f"nonfinite-{'validation-' * (self.what == VALIDATION)}step-{self.step}"


class NonFiniteStop:
    """Ends a run at numbers that are not finite, and saves what they came from; every process must take part.

    Args:
        args: The settings; a dry run saves nothing.
        captioner: With the weights that the numbers came from.
        accelerator: Where and in what precision.
        batches: Knows which images a step's batches are of.
        images: What is trained on.
    """

    def __init__(
        self,
        args: TrainArguments,
        captioner: ITuningForCaptioning,
        accelerator: Accelerator,
        batches: BatchMaker,
        images: Sequence[CaptionedImage],
    ) -> None:
        self.args, self.captioner, self.accelerator = args, captioner, accelerator
        self.batches, self.images = batches, images
        self.steps_per_epoch = batches.sampler(images, args.gradient_accumulation_steps).steps_per_epoch
        self.output_dir = Path(args.output_dir)

    def end_step(
        self,
        what: str,
        value: float,
        step: int,
        computed: Sequence[MicroBatch],
        loss_scale: float | None = None,
    ) -> NoReturn:
        """End the run in the midst of an optimizer step, before it changes anything.

        Args:
            what: "loss" or "gradient's norm".
            value: NaN or infinite; the same on every process.
            step: Optimizer steps taken before.
            computed: This process's batches of the step.
            loss_scale: What the loss was multiplied by; the scaler's scale by default, 1 where there is none.

        Raises:
            NonFiniteLossError: on the main process.
            OtherProcessError: on the others.
        """
        scaler = self.accelerator.scaler
        if loss_scale is None:
            loss_scale = 1.0 if scaler is None else scaler.get_scale()
        keys = self.batches.sampler(self.images, self.args.gradient_accumulation_steps, True, step)
        names = [image_names(self.images, batch) for batch in itertools.islice(keys, len(computed))]
        epoch = (step + 1) / self.steps_per_epoch
        self._end(Finding(what, value, step + 1, epoch, loss_scale), computed, names)

    def end_validation(
        self, loss: float, step: int, computed: Sequence[MicroBatch], names: Sequence[Sequence[str]]
    ) -> NoReturn:
        """End the run after a validation; errors as `end_step`.

        Args:
            loss: NaN or infinite; the same on every process.
            step: Optimizer steps taken before.
            computed: This process's batch that it comes from, if there is one.
            names: Its images'.
        """
        self._end(Finding(VALIDATION, loss, step, step / self.steps_per_epoch), computed, names)

    def after_skipped_step(self, step: int, computed: Sequence[MicroBatch]) -> None:
        """Say that fp16's scaler skipped a step; end the run where ever smaller scales have not helped.

        Args:
            step: Optimizer steps taken before.
            computed: This process's batches of the step.
        """
        scaler = self.accelerator.scaler
        scale = scaler.get_scale()
        if scale < LEAST_LOSS_SCALE:
            self.end_step(GRADIENT, math.inf, step, computed, scale / scaler.get_backoff_factor())
        if self.accelerator.is_main_process:
            logger.warning(
                "step %d is skipped: its gradients overflow fp16; the loss scale is %g from now on",
                step + 1,
                scale,
            )

    def require_finite_weights(self, step: int) -> None:
        """Refuse to save weights that a step has ruined; they are the same on every process.

        Args:
            step: Optimizer steps taken before.

        Raises:
            NonFiniteLossError, OtherProcessError: as `end_step`.
        """
        for name, tensor in self.captioner.adapter_state_dict().items():
            if not tensor.isfinite().all():
                message = (
                    f"The weights {name} are not finite after step {step}, so training stops"
                    f"{self._kept()}. {self._advice()}"
                )
                tell_once(self.accelerator, NonFiniteLossError(message))

    def _end(
        self, finding: Finding, batches: Sequence[MicroBatch], names: Sequence[Sequence[str]]
    ) -> NoReturn:
        own = {
            f"batch-{self.accelerator.process_index}-{position}.safetensors": position
            for position in self._choose(finding, batches)
        }
        about = {file: _describe(batches[position], names[position]) for file, position in own.items()}
        described = {file: of_file for part in gather_object([about]) for file, of_file in part.items()}
        where = self._save(finding, {file: batches[i] for file, i in own.items()}, described)
        tell_once(self.accelerator, NonFiniteLossError(self._message(finding, described, where)))

    def _message(
        self, finding: Finding, described: dict[str, dict[str, Any]], where: str | TrainingError | None
    ) -> str:
        images = [name for of_file in described.values() for name in of_file["images"]]
        inputs: dict[str, list[str]] = {}
        for of_file in described.values():
            for name, found in of_file["nonfinite_inputs"].items():
                inputs.setdefault(name, []).extend(found)
        parts = [
            f"The {finding.what} is {finding.value} at step {finding.step} (epoch {finding.epoch:.2f}), so "
            f"training stops{self._kept()}.",
            f"The images {first_names(images, SHOWN_NAMES)} went into it.",
        ]
        if isinstance(where, TrainingError):  # which says itself what to do
            parts.append(f"This batch could not be saved: {where}")
        elif where is not None:
            parts.append(f"This batch is saved: `ituning replay {shlex.quote(where)}` shows where it begins.")
        parts += [
            f"The {name} of {first_names(found, SHOWN_NAMES)} are not finite: mend what they come from."
            for name, found in inputs.items()
        ]
        if not inputs and not isinstance(where, TrainingError):
            parts.append(self._advice())
        return " ".join(parts)

    def _kept(self) -> str:
        kept = f"; the checkpoints in {self.output_dir} are as they were before"
        return kept if list_checkpoints(self.output_dir) else ""

    def _advice(self) -> str:
        """Say what helps: from a checkpoint the run comes to the same, and takes no other settings."""
        instead = ", or --mixed_precision bf16" * (self.accelerator.mixed_precision == "fp16")
        return f"Start anew in another --output_dir with a lower --learning_rate{instead}."

    def _choose(self, finding: Finding, batches: Sequence[MicroBatch]) -> list[int]:
        """Return the first micro-batch that is at fault by itself; where no process has one, all of them."""
        numbers = self._gradient_norm if finding.what == GRADIENT else _loss
        with one_fate(self.accelerator):
            broken = (i for i, batch in enumerate(batches) if not math.isfinite(numbers(batch, finding)))
            first = next(broken, None)
        somebody_has_one = any(gather_object([first is not None]))
        if somebody_has_one:
            return [] if first is None else [first]
        return list(range(len(batches)))

    def _gradient_norm(self, batch: MicroBatch, finding: Finding) -> float:
        loss = batch.compute(self.captioner, self.args.label_smoothing)
        found = gradients(self.captioner, loss, self.accelerator.num_processes * finding.loss_scale)
        return float(torch.nn.utils.get_total_norm(list(found.values())))

    def _save(
        self, finding: Finding, own: dict[str, MicroBatch], described: dict[str, dict[str, Any]]
    ) -> str | TrainingError | None:
        """Save it; return the folder, or why there is none."""
        if self.args.dry_run:
            return None
        main = self.accelerator.is_main_process
        number = _next_number(self.output_dir, finding.folder_name) if main else 0
        number = broadcast_object_list([number])[0]
        target = _numbered(self.output_dir, finding.folder_name, number)
        try:
            with shared_folder(self.accelerator, target) as draft:
                for file, batch in own.items():
                    batch.save(draft / file)
                if main:
                    self.captioner.config.to_json_file(draft / CONFIG_FILE)
                    save_file(self.captioner.adapter_state_dict(), draft / ADAPTER_FILE)
                    write_json(draft / REPORT_FILE, self._report(finding, described))
        except (TrainingError, OtherProcessError) as error:  # a full disk must not hide what happened
            return TrainingError(error)
        before = _numbered(self.output_dir, finding.folder_name, number - 1)
        # A run that goes on from its checkpoint comes to the same numbers again.
        if main and number > 1 and _contents(before) == _contents(target):
            remove_folder(target)
            target = before
        return str(target)

    def _report(self, finding: Finding, described: dict[str, dict[str, Any]]) -> dict[str, Any]:
        return {
            "what": finding.what,
            "value": str(finding.value),
            "step": finding.step,
            "epoch": finding.epoch,
            "batches": described,
            "computation": {
                "training": finding.what != VALIDATION,
                "mixed_precision": self.accelerator.mixed_precision,
                "frozen_precision": self.args.frozen_precision,
                "gradient_checkpointing": self.args.gradient_checkpointing,
                "full_determinism": self.args.full_determinism,
                "label_smoothing": self.args.label_smoothing if finding.what != VALIDATION else 0.0,
                "gradient_factor": self.accelerator.num_processes * finding.loss_scale,
                "device": self.accelerator.device.type,
                "num_threads": torch.get_num_threads(),
            },
            "versions": library_versions(),
        }


def _loss(batch: MicroBatch, finding: Finding) -> float:
    return float(batch.loss)


def _describe(batch: MicroBatch, names: Sequence[str]) -> dict[str, Any]:
    nonfinite = {
        name: [names[image] for image in images] for name, images in batch.nonfinite_images().items()
    }
    return {"images": [name for name in names if name], "nonfinite_inputs": nonfinite}


def _numbered(output_dir: Path, name: str, number: int) -> Path:
    return output_dir / (name if number <= 1 else f"{name}-{number}")


def _next_number(output_dir: Path, name: str) -> int:
    number = 1
    while _numbered(output_dir, name, number).exists():
        number += 1
    return number


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
