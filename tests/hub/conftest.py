"""A Hub with two backbones, and captioners that were trained over local copies of them."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from loopback_hub import LoopbackHub, running_hub, use_hub
from PIL import Image
from small_models import edit_json, make_captioner, randomize_adapters

from ituning_hf import ITuningForCaptioning, ITuningProcessor, save_captioner
from ituning_hf.hub.records import EvaluationRecord, TrainingRecord, ValidationRecord


@pytest.fixture(scope="session")
def captioners(
    backbones: dict[str, Path], processor: ITuningProcessor, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Two folders, "a" and "b", of captioners over local backbones; and a "picture"."""
    root = tmp_path_factory.mktemp("captioners")
    for seed, name in enumerate("ab"):
        model = randomize_adapters(make_captioner(backbones, adapter_layers=[1, 3]), seed=seed)
        save_captioner(model, processor, root / name)
    pixels = np.random.default_rng(5).integers(0, 256, (45, 61, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "picture.png")
    return {name: root / name for name in "ab"} | {"picture": root / "picture.png"}


@pytest.fixture(scope="session")
def expected(captioners: dict[str, Path], processor: ITuningProcessor) -> dict[str, str]:
    """The captions of the picture by the captioners "a" and "b"."""
    batch = processor(images=[Image.open(captioners["picture"])])
    captions = {}
    for name in "ab":
        ids = ITuningForCaptioning.from_pretrained(captioners[name]).generate(**batch, num_beams=5)
        captions[name] = processor.batch_decode(ids, skip_special_tokens=True)[0]
    assert captions["a"] != captions["b"]
    return captions


@pytest.fixture
def hub(backbones: dict[str, Path]) -> Iterator[LoopbackHub]:
    """A Hub with the backbones org/clip and org/text."""
    with running_hub({"org/clip": backbones["clip"], "org/text": backbones["text"]}) as hub:
        yield hub


@pytest.fixture
def writer(hub: LoopbackHub, tmp_path: Path) -> Iterator[None]:
    """This process uses the Hub, with a token that may write to org/ and ann/."""
    with use_hub(hub.endpoint, tmp_path / "home", "writer"):
        yield


@pytest.fixture
def saved(captioners: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the captioner "a", over local backbones."""
    return Path(shutil.copytree(captioners["a"], tmp_path / "captioner"))


@pytest.fixture
def from_hub(saved: Path) -> Path:
    """A captioner whose configuration names backbones of the Hub."""
    edit_json(
        saved / "config.json",
        vision_model_name_or_path="openai/clip-vit-base-patch16",
        vision_model_revision="0123456789abcdef0123456789abcdef01234567",
        text_model_name_or_path="gpt2",
        text_model_revision="f" * 40,
    )
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
            "gradient_checkpointing": False,
            "seed": 0,
        },
        validation=ValidationRecord(
            step=18_120, scores={"loss": 2.34567, "bleu_4": 0.2961, "cider": 0.6}, num_scored=200
        ),
        versions={"transformers": "5.23.0", "python": "3.11.7", "torch": "2.13.0"},
        device="NVIDIA H200",
        num_processes=2,
    )


@pytest.fixture
def evaluations() -> list[EvaluationRecord]:
    command = "ituning evaluate --model org/x --dataset coco.json --split test"
    return [
        EvaluationRecord(
            dataset="COCO Karpathy",
            split="test",
            num_images=5_000,
            metrics={"cider": 1.10001, "bleu_4": 0.34567},
            command=command,
            tokenizer="PTB (Java)",
        ),
        EvaluationRecord(
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
