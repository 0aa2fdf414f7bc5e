"""A saved captioner that says its backbones come from the Hub, and records of its training and evaluation."""

import json
from pathlib import Path
from typing import Any

import pytest
from small_models import make_captioner

from ituning_hf import save_captioner
from ituning_hf.hub.evaluation_results import EvaluationResult
from ituning_hf.hub.training_record import TrainingRecord, ValidationRecord

COMMITS = {"vision": "0123456789abcdef0123456789abcdef01234567", "text": "f" * 40}


@pytest.fixture
def saved(backbones: dict[str, Path], processor: Any, tmp_path: Path) -> Path:
    """Over local backbones."""
    folder = tmp_path / "captioner"
    save_captioner(make_captioner(backbones, adapter_layers=[0, 1, 3]), processor, folder)
    return folder


@pytest.fixture
def from_hub(saved: Path) -> Path:
    """As if its backbones had come from the Hub."""
    path = saved / "config.json"
    config = json.loads(path.read_text())
    config |= {f"{kind}_model_revision": commit for kind, commit in COMMITS.items()}
    config["vision_model_name_or_path"] = "openai/clip-vit-base-patch16"
    config["text_model_name_or_path"] = "gpt2"
    path.write_text(json.dumps(config))
    return saved


@pytest.fixture
def training() -> TrainingRecord:
    return TrainingRecord(
        dataset="org/photos:small",
        dataset_on_hub=True,
        num_train_images=29_000,
        eval_split="val",
        num_eval_images=1_014,
        step=18_120,
        epoch=10.0,
        settings={
            "learning_rate": 5e-4,
            "augmentation": ["crop", "flip"],
            "mixed_precision": "bf16",
            "adapter_scale": 1.0,
            "eval_split": "val",
            "max_train_steps": None,
            "num_train_epochs": 10.0,
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 3,
        },
        validation=ValidationRecord(
            step=18_120, scores={"loss": 2.34567, "bleu_4": 0.2961, "cider": 0.6}, num_scored=200
        ),
        versions={"transformers": "5.23.0", "python": "3.11.7", "torch": "2.13.0"},
        device="NVIDIA H200",
        num_processes=2,
    )


@pytest.fixture
def results() -> list[EvaluationResult]:
    command = "ituning evaluate --model org/x --dataset coco.json --split test"
    metrics = {"cider": 1.10001, "bleu_4": 0.34567}
    return [
        EvaluationResult(
            dataset="COCO Karpathy",
            split="test",
            num_images=5_000,
            metrics=metrics,
            command=command,
            tokenizer="PTB (Java)",
        ),
        EvaluationResult(
            dataset="NoCaps",
            split="val",
            subset="out-of-domain",
            num_images=914,
            metrics={"cider": 0.5, "spice": 0.1},
            command=command.replace("coco", "nocaps"),
            tokenizer="Python",
            num_unreadable=2,
        ),
    ]
