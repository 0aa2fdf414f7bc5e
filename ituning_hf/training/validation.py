"""Validation during training: loss, captions, and their scores."""

from __future__ import annotations

import itertools
import math

import torch
from accelerate.utils import broadcast_object_list, gather_object, send_to_device

from ..data.columns import CaptionedImages
from ..data.sampler import SampleKey
from ..hub.records import ValidationRecord
from ..inference.captioning import generate_captions
from ..utils.distributed import raise_on_main, sync_errors
from .data import Batches, count_label_tokens
from .errors import NonFiniteLossError

SCORERS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider")  # those that need no Java


class Validator:
    """Validates a captioner, as Accelerate prepared it, during training; every process must take part."""

    def __init__(self, model: torch.nn.Module, images: CaptionedImages, batches: Batches) -> None:
        self.model, self.images, self.batches = model, images, batches
        self.args, self.processor, self.accelerator = batches.args, batches.processor, batches.accelerator
        self.captioner = self.accelerator.unwrap_model(model)

    def run(self, step: int) -> tuple[ValidationRecord, dict[str, str]]:
        """Compute the loss, and the captions and scores that the settings ask for.

        The loss is the mean over the label tokens of the split, without label smoothing. The captions are of
        the first readable images, so of the same images at each validation.

        Returns:
            The scores, and the sample captions by image name: the same on every process, and for any number
            of processes.
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
        scored = dict(itertools.islice(captions.items(), self.args.eval_caption_images))
        scores = {"loss": loss} | (self._score(scored) if scored else {})
        shown = itertools.islice(captions.items(), self.args.num_sample_captions)
        samples = {self.images[index].name: caption for index, caption in shown}
        return ValidationRecord(step=step, scores=scores, num_scored=len(scored)), samples

    @torch.no_grad()
    def _loss(self) -> float:
        sampler = self.batches.sampler(self.images)
        keys = itertools.islice(sampler, sampler.steps_per_epoch)
        sums = torch.zeros(3, dtype=torch.float64, device=self.accelerator.device)
        for batch in self.batches.loader(self.images, list(keys), self.args.captions_per_image):
            batch = send_to_device(batch, self.accelerator.device)
            problems = batch.pop("unreadable")
            self.batches.log_unreadable(problems)
            items = count_label_tokens(batch)
            loss = self.model(**batch, num_items_in_batch=1, skip_logits=True).loss
            sums += torch.stack([loss.double(), items.double(), items.new_tensor(len(problems)).double()])
        total, items, unreadable = self.accelerator.reduce(sums, "sum").tolist()
        self.batches.check_unreadable(int(unreadable), len(self.images))
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
        length = self.args.max_caption_tokens - 1  # without the begin token
        options = {"num_return_sequences": 1, "num_beams": 1, "max_new_tokens": length}
        captions: list[tuple[int, str]] = []
        for items in self.batches.loader(self.images, batches, 1, collate=list):
            self.batches.log_unreadable(item["unreadable"] for item in items if item["unreadable"])
            if readable := [item for item in items if item["image"] is not None]:
                inputs = {self.batches.inputs().name: torch.stack([item["image"] for item in readable])}
                with self.accelerator.autocast():
                    texts = generate_captions(self.captioner, self.processor, inputs, options)
                captions += [(item["index"], text) for item, (text,) in zip(readable, texts, strict=True)]
        return dict(sorted(gather_object(captions)))

    def _score(self, captions: dict[int, str]) -> dict[str, float]:
        """Score captions on the main process: the best captioner must be the same on all processes."""
        from ..evaluation.metrics import compute_caption_metrics  # of an optional extra

        scores: list[dict[str, float]] = [{}]
        with sync_errors(self.accelerator):
            if self.accelerator.is_main_process:
                references = [list(self.images[index].captions) for index in captions]
                found = compute_caption_metrics(list(captions.values()), references, java=False)
                scores = [{name: float(found[name]) for name in SCORERS}]
        return broadcast_object_list(scores)[0]
