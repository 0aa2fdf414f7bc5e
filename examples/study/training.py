"""Train, caption and score one cell of the study: the same data, visits and optimizer for every method."""

from __future__ import annotations

import itertools
import resource
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from ituning_hf.captioner.adapter_ituning import normalize_tokens
from ituning_hf.captioner.configuration_ituning import ADAPTER_OPTIONS
from ituning_hf.data import CaptionedImages
from ituning_hf.data.dataset import CaptionDataset, Collator
from ituning_hf.data.inputs import FeatureInputs
from ituning_hf.data.sampler import ImageBatchSampler, SampleKey
from ituning_hf.evaluation.metrics import score_captions
from ituning_hf.features import FeatureStore
from ituning_hf.inference.captioning import decode_captions
from ituning_hf.training import TrainArguments
from ituning_hf.training.data import count_label_tokens
from ituning_hf.training.optimization import create_optimizer, create_schedule
from ituning_hf.training.setup import load_model, with_backbones
from ituning_hf.utils.devices import library_versions

from .cells import Cell
from .methods import build

BATCH_SIZE = 8  # images in an optimizer step, unless the cell says otherwise
MEASURED_STEPS = 50  # of the peak memory: later it would contain the mapped feature files
# Of generation, so that a captioner's own defaults do not count.
PLAIN = {
    "num_beams": 1,
    "max_new_tokens": 40,
    "length_penalty": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}
RECORDED = (
    *("learning_rate", "lr_scheduler_type", "warmup_ratio", "weight_decay", "max_grad_norm"),
    *("label_smoothing", "captions_per_image", "max_caption_tokens", "per_device_train_batch_size", "seed"),
)
Batch = dict[str, Any]


@dataclass
class NormalizedFeatures:
    """Stored features whose image tokens are normalized, as I-Tuning does: every method sees the same."""

    store: FeatureStore

    def read(self, name: str) -> torch.Tensor:
        """Return the image tokens of an image, (N, d_v)."""
        return normalize_tokens(self.store.read(name))

    def blank(self) -> torch.Tensor:
        """Return zeros, (N, d_v)."""
        return normalize_tokens(self.store.blank())


@dataclass
class Images:
    """Images of a split, read from stored features in batches."""

    images: CaptionedImages
    processor: Any
    inputs: FeatureInputs
    args: TrainArguments

    def batches(self, keys: list[list[SampleKey]]) -> Iterator[Batch]:
        """Yield batches of images with their captions."""
        captions = self.args.captions_per_image, self.args.max_caption_tokens, self.args.seed
        items = CaptionDataset(self.images, self.inputs, self.processor, *captions)
        for batch in DataLoader(items, batch_sampler=keys, collate_fn=Collator(self.inputs, self.processor)):
            del batch["unreadable"]
            yield batch

    def training_batches(self, batch_size: int, steps: int) -> Iterator[Batch]:
        """Yield the batches of a training run."""
        sampler = ImageBatchSampler(len(self.images), batch_size, 1, 1, 0, self.args.seed)
        return self.batches(list(itertools.islice(sampler, steps)))

    def all_batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield all images once, in their order."""
        keys = [SampleKey(0, index, padding=False) for index in range(len(self.images))]
        return self.batches([keys[i : i + batch_size] for i in range(0, len(keys), batch_size)])


def run_cell(cell: Cell, dataset: str, features: str, text_model: str) -> dict[str, Any]:
    """Train and score a captioner; return the content of its result file."""
    settings = {"per_device_train_batch_size": BATCH_SIZE} | cell.settings
    args = with_backbones(
        TrainArguments(
            dataset=dataset,
            features=features,
            text_model=text_model,
            seed=cell.seed,
            learning_rate=cell.learning_rate,
            **settings,
        )
    )
    store = FeatureStore(features)
    train_images, val_images = args.load_splits(["train", "val"], 0, require_images=False)
    torch.manual_seed(cell.seed)
    captioner, processor = load_model(args, store, torch.device("cpu"))
    model = build(cell.method, captioner)
    inputs = FeatureInputs(store if args.vision_feature_norm is False else NormalizedFeatures(store))
    training = Images(evenly_spaced(train_images, cell.num_train_images), processor, inputs, args)
    all_captions = replace(args, captions_per_image=TrainArguments().captions_per_image)
    validation = Images(evenly_spaced(val_images, cell.num_eval_images), processor, inputs, all_captions)
    cost = train(model, training, args, cell.visits // args.per_device_train_batch_size)
    loss = validation_loss(model, validation)
    captions, seconds = caption(model, validation)
    references = [list(image.captions) for image in validation.images]
    scores = score_captions(captions, references, java=False)  # METEOR is computed for the report
    return {
        "cell": asdict(cell),
        "settings": {name: getattr(args, name) for name in RECORDED}
        | {name: getattr(captioner.config, name) for name in ADAPTER_OPTIONS},
        "metrics": {"loss": loss} | scores.metrics,
        "intervals": scores.intervals,
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        **cost,
        "cpu_seconds_per_caption": seconds,
        "versions": library_versions(),
        "captions": captions,
    }


def evenly_spaced(images: CaptionedImages, count: int | None) -> CaptionedImages:
    """Select evenly spaced images."""
    count = count or len(images)
    return images.select([i * len(images) // count for i in range(count)])


def train(model: nn.Module, images: Images, args: TrainArguments, steps: int) -> dict[str, float]:
    """Train a captioner as `ituning train` does; return the steps, CPU seconds and peak memory.

    Training ends at a gradient that is not finite.
    """
    optimizer = create_optimizer(model, args.learning_rate, args.weight_decay)
    schedule = create_schedule(optimizer, args.lr_scheduler_type, args.warmup_ratio, steps)
    model.train()
    seconds, peak = [], 0
    for batch in images.training_batches(args.per_device_train_batch_size, steps):
        started = time.process_time()
        loss = model(**batch, label_smoothing=args.label_smoothing).loss
        loss.backward()
        if not nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm).isfinite():
            break  # the captioner is scored as it is
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - started)
        if len(seconds) <= MEASURED_STEPS:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "steps": len(seconds),
        "cpu_seconds_per_step": statistics.median(seconds),
        "cpu_seconds_training": sum(seconds),
        "peak_memory_mb": peak / 1024,
    }


@torch.no_grad()
def validation_loss(model: nn.Module, images: Images) -> float:
    """Return the mean loss of the label tokens."""
    model.eval()
    total, items = 0.0, 0
    for batch in images.all_batches(20):
        total += float(model(**batch, num_items_in_batch=1, skip_logits=True).loss)
        items += int(count_label_tokens(batch))
    return total / items


@torch.no_grad()
def caption(model: Any, images: Images, **options: Any) -> tuple[list[str], float]:
    """Caption images; return the captions and the CPU seconds for each, without reading the features."""
    model.eval()
    captions: list[str] = []
    seconds = 0.0
    options = PLAIN | options
    for batch in images.all_batches(20):
        started = time.process_time()
        ids = model.generate(visual_features=batch["visual_features"], **options)
        seconds += time.process_time() - started
        captions += decode_captions(images.processor, ids)
    return captions, seconds / len(captions)
