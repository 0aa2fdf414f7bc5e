"""How good a captioner is on the validation split: its loss, its captions, and their scores."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import shorten

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, send_to_device

from ..captioner.processing_ituning import IGNORE_INDEX, ITuningProcessor
from ..data.records import CaptionedImage
from ..data.sampler import SampleKey
from ..evaluation.scores import METRIC_NAMES
from ..inference.captioning import generate_captions, search_options
from ..utils.distributed import raise_on_main, sync_errors
from ..utils.errors import UserError
from ..utils.terminal import printable
from .arguments import TrainArguments
from .data import Batches, SkippedImages
from .errors import NonFiniteLossError

FEW_BATCHES = 2
SHOWN_CHARACTERS = 110  # of a sample caption

_SCORERS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider")  # those that need no Java
SCORE_NAMES = {"loss": "loss"} | {name: METRIC_NAMES[name] for name in _SCORERS}


@dataclass(frozen=True)
class Validation:
    """The results of a validation.

    Args:
        scores: "loss", the mean over the label tokens of the whole split, without label smoothing; if
            captions were scored, also the other keys of `SCORE_NAMES`.
        num_scored: Images whose captions were scored.
        samples: The sample images' captions, by image name.
    """

    scores: dict[str, float]
    num_scored: int
    samples: dict[str, str]

    def lines(self, when: str) -> list[str]:
        """Return the results as text; `when` says when it was."""
        lines = [f"validation loss {self.scores['loss']:.4f}  ({when})"]
        if self.num_scored:
            scores = [f"{SCORE_NAMES[key]} {self.scores[key]:.4f}" for key in self.scores if key != "loss"]
            lines.append(f"  captions of {self.num_scored:,} validation images: {', '.join(scores)}")
        # An untrained captioner may not end its captions; the log has all of them.
        samples = {printable(n): printable(shorten(s, SHOWN_CHARACTERS)) for n, s in self.samples.items()}
        width = max(map(len, samples), default=0) + 1
        return lines + [f"  {name + ':':<{width}} {text}" for name, text in samples.items()]


class Validator:
    """Validates a captioner, as Accelerate prepared it, during training; every process must take part."""

    def __init__(
        self,
        args: TrainArguments,
        model: torch.nn.Module,
        processor: ITuningProcessor,
        images: Sequence[CaptionedImage],
        batches: Batches,
        accelerator: Accelerator,
        skipped: SkippedImages,
    ) -> None:
        self.args, self.model, self.processor, self.images = args, model, processor, images
        self.batches, self.accelerator, self.skipped = batches, accelerator, skipped
        self.captioner = accelerator.unwrap_model(model)

    def run(self, step: int) -> Validation:
        """Compute the loss, and the captions and scores that the settings ask for.

        The captions are of the first readable images, so of the same images at each validation.

        Args:
            step: Optimizer steps taken, for the message of an error.

        Returns:
            The same on every process, and for any number of processes.

        Raises:
            NonFiniteLossError: if the loss is not finite.
            TooManyUnreadableError: if more images are unreadable than allowed.
        """
        self.captioner.eval()
        loss = self._loss()
        if not math.isfinite(loss):
            message = (
                f"The validation loss is {loss} at step {step}. Training stops, and the checkpoints are "
                "unchanged. Check the validation images, or start a new run with a lower --learning_rate."
            )
            raise_on_main(self.accelerator, NonFiniteLossError(message))
        captions = self._first_captions(max(self.args.eval_caption_images, self.args.num_sample_captions))
        self.captioner.train()
        indices = list(captions)
        scored = indices[: self.args.eval_caption_images]
        scores = {"loss": loss} | (self._score({i: captions[i] for i in scored}) if scored else {})
        samples = {self.images[i].name: captions[i] for i in indices[: self.args.num_sample_captions]}
        return Validation(scores, len(scored), samples)

    @torch.no_grad()
    def _loss(self) -> float:
        """Compute the mean loss over the label tokens of the whole split."""
        sampler = self.batches.sampler(self.images, shuffle=False)
        keys = itertools.islice(sampler, sampler.steps_per_epoch)
        captions = min(max(len(image.captions) for image in self.images), self.args.captions_per_image)
        sums = torch.zeros(3, dtype=torch.float64, device=self.accelerator.device)
        for batch in self.batches.loader(self.images, list(keys), captions):
            batch = send_to_device(batch, self.accelerator.device)
            problems = batch.pop("unreadable")
            self.skipped.add(problems)
            items = (batch["labels"][:, 1:] != IGNORE_INDEX).sum()
            loss = self.model(**batch, num_items_in_batch=1).loss
            sums += torch.stack([loss.double(), items.double(), items.new_tensor(len(problems)).double()])
        total, items, unreadable = self.accelerator.reduce(sums, "sum").tolist()
        self.skipped.check_limit(int(unreadable), self.images)
        return total / items

    def _first_captions(self, wanted: int) -> dict[int, str]:
        """Caption the first `wanted` images that can be read; return the captions by image index."""
        captions: dict[int, str] = {}
        start = 0
        while len(captions) < wanted and start < len(self.images):
            chosen = range(len(self.images))[start : start + wanted - len(captions)]
            captions |= self._captions(chosen)
            start = chosen.stop
        return captions

    def _captions(self, chosen: range) -> dict[int, str]:
        """Caption those of the chosen images that can be read, each on one process."""
        own = chosen[self.accelerator.process_index :: self.accelerator.num_processes]
        size = self.args.per_device_train_batch_size
        keys = [SampleKey(0, index, padding=False) for index in own]
        batches = [keys[start : start + size] for start in range(0, len(keys), size)]
        captions: list[tuple[int, str]] = []
        # Starting worker processes takes longer than reading a few images.
        workers = 0 if len(batches) <= FEW_BATCHES else None
        for items in self.batches.loader(self.images, batches, 1, collate=list, num_workers=workers):
            self.skipped.add(item["unreadable"] for item in items if item["unreadable"] is not None)
            if readable := [item for item in items if item["image"] is not None]:
                texts = self._generate(torch.stack([item["image"] for item in readable]))
                captions += zip((item["index"] for item in readable), texts, strict=True)
        return dict(sorted(gather_object(captions)))

    def _generate(self, images: torch.Tensor) -> list[str]:
        inputs = {self.batches.inputs().name: images}
        max_new_tokens = self.args.max_caption_tokens - 1  # without the begin token
        options = search_options(self.captioner, 1, 1, max_new_tokens, {})
        with self.accelerator.autocast():
            captions = generate_captions(self.captioner, self.processor, inputs, options)
        return [caption for (caption,) in captions]

    def _score(self, captions: dict[int, str]) -> dict[str, float]:
        """Score captions on the main process: the best captioner must be the same on all processes."""
        from ..evaluation.metrics import compute_caption_metrics  # of an optional extra

        scores: list[dict[str, float]] = [{}]
        with sync_errors(self.accelerator):
            if self.accelerator.is_main_process:
                references = [list(self.images[index].captions) for index in captions]
                found = compute_caption_metrics(list(captions.values()), references, java=False)
                scores = [{name: float(found[name]) for name in _SCORERS}]
        return broadcast_object_list(scores)[0]


def require_scorers(metric_for_best_model: str) -> None:
    """Check that the caption scorers are installed, before long work.

    Args:
        metric_for_best_model: The setting; a metric that needs the scorers must be changed too.

    Raises:
        UserError: if they are not, with the command that installs them.
    """
    try:
        import pycocoevalcap  # noqa: F401
    except ModuleNotFoundError as error:
        metric = "" if metric_for_best_model == "loss" else " --metric_for_best_model loss"
        raise UserError(
            "--eval_caption_images needs the caption scorers, which are not installed: run "
            f"pip install 'ituning_hf[eval]', or give --eval_caption_images 0{metric}."
        ) from error
