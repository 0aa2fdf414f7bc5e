"""The training record of a captioner: correct, without paths, times or traces of an interruption."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import transformers
from accelerate import Accelerator
from runs import Settings
from small_models import read_log, validation_scores

import ituning_hf
from ituning_hf.data.scenes import read_scenes
from ituning_hf.hub.records import TrainingRecord, ValidationRecord, read_training_record
from ituning_hf.training.arguments import TrainArguments
from ituning_hf.training.data import TrainingData, load_data
from ituning_hf.training.identity import training_record
from ituning_hf.training.run import train


def record_of(args: TrainArguments, name: str = "last") -> TrainingRecord:
    record = read_training_record(Path(args.output_dir) / name)
    assert record is not None
    return record


def test_record_of_a_run(settings: Settings, tmp_path: Path, photos: Path):
    args = settings(max_train_steps=5, eval_steps="2", eval_caption_images=2, learning_rate=0.25)
    state = train(args)
    best, last = (record_of(args, name) for name in ("best", "last"))
    losses = validation_scores(args.output_dir, "loss")
    assert isinstance(last.validation, ValidationRecord)
    assert (last.validation.step, last.validation.num_scored) == (5, 2)
    assert last.validation.scores["loss"] == losses[5]
    assert last.validation.scores.keys() > {"bleu_4", "cider"}
    assert (best.step, best.validation.scores["loss"]) == (state.best_step, state.best_metric)
    assert (last.step, last.epoch) == (5, 5 / 3)
    assert (last.dataset, last.dataset_on_hub) == ("photos", False)
    assert (last.num_train_images, last.eval_split, last.num_eval_images) == (11, "val", 3)
    assert (last.num_processes, last.device[:4]) == (1, "CPU ")
    assert last.versions == {
        "python": ".".join(map(str, sys.version_info[:3])),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "ituning_hf": ituning_hf.__version__,
    }
    assert last.settings["learning_rate"] == 0.25
    assert last.settings["mixed_precision"] == "no"
    run = json.loads((Path(args.output_dir) / "run.json").read_text())["settings"]
    assert last.settings.items() <= run.items()
    assert run.keys() - last.settings.keys() == {
        "baseline",
        "checkpointing_steps",
        "cross_entropy_weight",
        "dataloader_num_workers",
        "dataset",
        "expected_eval_images",
        "expected_train_images",
        "features",
        "image_root",
        "max_checkpoints",
        "max_unreadable_share",
        "num_samples",
        "num_scenes",
        "preset",
        "report_to",
        "sampling",
        "text_model",
        "vision_model",
    }
    card = (Path(args.output_dir) / "last" / "README.md").read_text()
    assert "`photos`" in card
    assert f"{read_log(args.output_dir)[-1]['validation_loss']:.4f}" in card
    for text in (card, (Path(args.output_dir) / "last" / "training.json").read_text()):
        for path in (tmp_path, Path.home(), Path.cwd(), photos.parent):
            assert str(path) + os.sep not in text


@pytest.mark.parametrize(
    ("changes", "dataset", "gone"),
    [
        ({"dataset": "scenes", "num_scenes": 20}, "scenes that ituning_hf draws", "val_share"),
        ({}, None, "num_scenes"),
    ],
    ids=["scenes", "Python"],
)
def test_data_without_a_path(settings: Settings, changes: dict[str, Any], dataset: str | None, gone: str):
    args = settings(max_train_steps=1, eval_split="none", **changes)
    images = load_data(args)
    train(args, None if changes else TrainingData(images.train, images.evaluation))
    record = record_of(args)
    assert (record.dataset, record.dataset_on_hub, record.validation) == (dataset, False, None)
    assert (record.eval_split, record.num_eval_images) == (None, 0)
    assert gone not in record.settings
    assert not (Path(args.output_dir) / "best").exists()


@pytest.mark.parametrize(
    ("dataset", "name", "on_hub"),
    [
        ("org/photos", "org/photos", True),
        ("org/photos:small", "org/photos:small", True),
        ("/data/ann/org/photos", "photos", False),
        ("/data/ann/dataset_coco.json", "dataset_coco.json", False),
    ],
)
def test_name_of_the_data_set(settings: Settings, dataset: str, name: str, on_hub: bool):
    identity = {"settings": settings(dataset=dataset).to_dict()}
    no_images = TrainingData(read_scenes("train", 0), read_scenes("val", 0))
    record = training_record(identity, no_images, 3, 1.5, None, Accelerator(cpu=True))
    assert (record.dataset, record.dataset_on_hub) == (name, on_hub)
    assert "/data" not in json.dumps(record.settings | {"dataset": record.dataset})
