"""How good a captioner is on the validation split: its loss, its captions, and their scores."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, send_to_device

from ..captioner.processing_ituning import IGNORE_INDEX, ITuningProcessor
from ..data.records import CaptionedImage
from ..data.sampler import SampleKey
from ..hub.evaluation_results import METRIC_NAMES
from ..utils.distributed import one_fate
from ..utils.terminal import printable
from .arguments import TrainArguments
from .batches import BatchMaker, SkippedImages, image_names
from .micro_batch import MicroBatch, random_state

FEW_BATCHES = 2
SHOWN_CHARACTERS = 110  # of a sample caption

_SCORERS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider")  # those that need no Java
SCORE_NAMES = {"loss": "loss"} | {name: METRIC_NAMES[name] for name in _SCORERS}


@dataclass(frozen=True)
class Validation:
    """What a validation found.

    Args:
        scores: "loss", the mean over the label tokens of the whole split, without label smoothing; with
            captions to score also the other keys of `SCORE_NAMES`.
        num_scored: Images whose captions were scored.
        samples: The sample images' captions, by image name.
    """

    scores: dict[str, float]
    num_scored: int
    samples: dict[str, str]

    def lines(self, when: str) -> list[str]:
        """Say it for people; `when` says when it was."""
        lines = [f"validation loss {self.scores['loss']:.4f}  ({when})"]
        if self.num_scored:
            scores = [f"{SCORE_NAMES[key]} {self.scores[key]:.4f}" for key in self.scores if key != "loss"]
            lines.append(f"  captions of {self.num_scored:,} validation images: {', '.join(scores)}")
        # Untrained, a captioner may ramble on; the log has all that it said.
        samples = {printable(n): printable(shorten(s, SHOWN_CHARACTERS)) for n, s in self.samples.items()}
        width = max(map(len, samples), default=0) + 1
        return lines + [f"  {name + ':':<{width}} {text}" for name, text in samples.items()]


class Validator:
    """Validates a captioner in the midst of its training; every process must take part.

    Args:
        args: The settings.
        model: The captioner as Accelerate prepared it.
        processor: Its processor.
        images: The validation split.
        batches: Reads them.
        accelerator: Where and in what precision.
        skipped: Gets to know the images that cannot be read.
    """

    def __init__(
        self,
        args: TrainArguments,
        model: torch.nn.Module,
        processor: ITuningProcessor,
        images: Sequence[CaptionedImage],
        batches: BatchMaker,
        accelerator: Accelerator,
        skipped: SkippedImages,
    ) -> None:
        self.args, self.model, self.processor, self.images = args, model, processor, images
        self.batches, self.accelerator, self.skipped = batches, accelerator, skipped
        self.captioner = accelerator.unwrap_model(model)
        self._losses: list[torch.Tensor] = []  # the last validation's, of this process's batches

    def describe(self, loss: float) -> Validation:
        """Make the captions that the settings ask for, and put them beside the loss.

        The captions are of the first images that can be read, so of the same ones at each validation.

        Args:
            loss: What `loss` returned.

        Returns:
            The same on every process, and for any number of processes.

        Raises:
            TooManyUnreadableError: if more images are unreadable than allowed.
        """
        self.captioner.eval()
        scores = {"loss": loss}
        captions = self._first_captions(max(self.args.eval_caption_images, self.args.num_sample_captions))
        self.captioner.train()
        indices = list(captions)
        scored = indices[: self.args.eval_caption_images]
        if scored:
            scores |= self._score({index: captions[index] for index in scored})
        samples = {self.images[i].name: captions[i] for i in indices[: self.args.num_sample_captions]}
        return Validation(scores, len(scored), samples)

    @torch.no_grad()
    def loss(self) -> float:
        """Compute the mean loss over the label tokens of the whole split.

        Returns:
            The same on every process, and for any number of processes.

        Raises:
            TooManyUnreadableError: if more images are unreadable than allowed.
        """
        self.captioner.eval()
        sums = torch.zeros(3, dtype=torch.float64, device=self.accelerator.device)
        self._losses = []
        for batch in self._batches(self._keys()):
            problems = batch.pop("unreadable")
            self.skipped.name(problems)
            items = (batch["labels"][:, 1:] != IGNORE_INDEX).sum()
            loss = self.model(**batch, num_items_in_batch=1).loss
            self._losses.append(loss)
            sums += torch.stack([loss.double(), items.double(), items.new_tensor(len(problems)).double()])
        total, items, unreadable = self.accelerator.reduce(sums, "sum").tolist()
        self.skipped.limit(int(unreadable), self.images)
        self.captioner.train()
        return total / items

    def first_nonfinite(self) -> tuple[list[MicroBatch], list[list[str]]]:
        """Read the batch again with which this process's loss stopped being finite.

        Returns:
            That batch, if there is one, and its images' names.
        """
        device = self.accelerator.device
        at_fault = [i for i, loss in enumerate(self._losses) if not loss.isfinite()][:1]
        keys = [self._keys()[i] for i in at_fault]
        batches = [
            {name: x for name, x in batch.items() if name != "unreadable"} for batch in self._batches(keys)
        ]
        computed = [
            MicroBatch(batch, 1, random_state(device), self._losses[i])
            for i, batch in zip(at_fault, batches, strict=True)
        ]
        return computed, [image_names(self.images, of_batch) for of_batch in keys]

    def _keys(self) -> list[list[SampleKey]]:
        sampler = self.batches.sampler(self.images)
        return list(itertools.islice(sampler, sampler.steps_per_epoch))

    def _batches(self, keys: list[list[SampleKey]]) -> Iterator[dict[str, Any]]:
        captions = min(max(len(image.captions) for image in self.images), self.args.captions_per_image)
        for batch in self.batches.loader(self.images, keys, captions):
            yield send_to_device(batch, self.accelerator.device)

    def _first_captions(self, wanted: int) -> dict[int, str]:
        """Caption the first `wanted` images that can be read; return the captions by image index."""
        captions: dict[int, str] = {}
        following = 0
        while len(captions) < wanted and following < len(self.images):
            chosen = range(len(self.images))[following : following + wanted - len(captions)]
            captions |= self._captions(chosen)
            following = chosen.stop
        return captions

    def _captions(self, chosen: range) -> dict[int, str]:
        """Caption those of the chosen images that can be read, each on one process."""
        own = chosen[self.accelerator.process_index :: self.accelerator.num_processes]
        size = self.args.per_device_train_batch_size
        keys = [SampleKey(0, index, padding=False) for index in own]
        batches = [keys[start : start + size] for start in range(0, len(keys), size)]
        captions: list[tuple[int, str]] = []
        # Where processes are spawned, starting them takes longer than reading a few images.
        workers = 0 if len(batches) <= FEW_BATCHES else None
        for items in self.batches.loader(self.images, batches, 1, collate=list, num_workers=workers):
            self.skipped.name(item["unreadable"] for item in items if item["unreadable"] is not None)
            if readable := [item for item in items if item["image"] is not None]:
                texts = self._generate(torch.stack([item["image"] for item in readable]))
                captions += zip((item["index"] for item in readable), texts, strict=True)
        return dict(sorted(gather_object(captions)))

    def _generate(self, images: torch.Tensor) -> list[str]:
        inputs = {self.batches.inputs().name: images.to(self.accelerator.device)}
        with self.accelerator.autocast():
            ids = self.captioner.generate(
                **inputs,
                num_beams=1,
                max_new_tokens=self.args.max_caption_tokens - 1,  # and the begin token
            )
        texts = self.processor.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [text.strip() for text in texts]

    def _score(self, captions: dict[int, str]) -> dict[str, float]:
        scores: list[dict[str, float]] = [{}]
        with one_fate(self.accelerator):
            if self.accelerator.is_main_process:
                scores = [self._scores_of(captions)]
        # One process's word for all, since what is best decides on what they all do next.
        return broadcast_object_list(scores)[0]

    def _scores_of(self, captions: dict[int, str]) -> dict[str, float]:
        from ..evaluation.metrics import compute_caption_metrics  # of an extra that a run may do without

        references = [list(self.images[index].captions) for index in captions]
        found = compute_caption_metrics(list(captions.values()), references, java=False)
        return {key: float(found[key]) for key in SCORE_NAMES if key != "loss"}


def require_scorers(metric_for_best_model: str) -> None:
    """Make sure, before long work, that captions can be scored.

    Args:
        metric_for_best_model: The setting; one that needs the scorers must change with the number of images.

    Raises:
        ValueError: if the scorers are not installed, with the command that installs them.
    """
    try:
        import pycocoevalcap  # noqa: F401
    except ModuleNotFoundError as error:
        metric = "" if metric_for_best_model == "loss" else " --metric_for_best_model loss"
        raise ValueError(
            "--eval_caption_images needs the caption scorers, and they are not installed: run "
            f"pip install 'ituning_hf[eval]', or give --eval_caption_images 0{metric}."
        ) from error
