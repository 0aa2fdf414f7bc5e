"""The main job on real input: photographs with human captions, and GPT-2's real tokenizer."""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_models import read_log
from transformers import AutoModel, AutoProcessor

from ituning_hf.data.loading import load_captioned_images
from ituning_hf.features.build import build_features
from ituning_hf.training.arguments import TrainArguments
from ituning_hf.training.cli import train
from ituning_hf.training.small_backbones import make_small_backbones

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
DATASET = SHARED / "flickr8k-mini" / "dataset_flickr8k_mini.json"

pytestmark = pytest.mark.skipif(
    not DATASET.is_file(), reason=f"{DATASET.parent} is not there: no photographs to train on"
)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """GPT-2's whole vocabulary is enough work for two, if nobody else is at work beside it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
    yield
    torch.set_num_threads(before)


@pytest.mark.first
@pytest.mark.usefixtures("two_threads")
def test_an_adapter_trained_on_photographs_captions_others(tmp_path: Path):
    vision, text = make_small_backbones(
        tmp_path / "backbones",
        load_captioned_images(DATASET, "train"),
        tokenizer=SHARED / "gpt2-tokenizer",
        vision_steps=40,
        text_steps=150,
        batch_size=48,
    )
    args = TrainArguments(
        vision_model=str(vision),
        text_model=str(text),
        dataset=str(DATASET),
        output_dir=str(tmp_path / "run"),
        num_train_epochs=2,
        captions_per_image=3,
        max_caption_tokens=32,
        learning_rate=3e-3,
    )
    state = train(args)
    assert state.step == 2 * math.ceil(762 / 16)
    first = (tmp_path / "run" / "log.jsonl").read_text().splitlines()[0]
    assert state.best_metric < json.loads(first)["validation_loss"] - 0.12

    folder = tmp_path / "run" / "best"
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    photographs = [image.load() for image in load_captioned_images(DATASET, "val")[:24]]
    ids = model.generate(**processor(images=photographs), num_beams=3)
    end = processor.tokenizer.eos_token_id
    assert (ids[:, 1:] == end).any(dim=1).float().mean() > 0.8  # they end by themselves
    after_end = (ids[:, 1:] == end).cumsum(dim=1) > 0
    assert torch.all(ids[:, 1:][after_end] == end)
    captions = processor.batch_decode(ids, skip_special_tokens=True)
    assert all(caption.strip() for caption in captions)
    assert len(set(captions)) > 5


@pytest.mark.slow
def test_from_stored_features_it_is_the_same_run(tmp_path: Path):
    """Small backbones, a store by their encoder, and the same losses from it, without the encoder."""
    splits = [load_captioned_images(DATASET, split) for split in ("train", "val")]
    vision, text = make_small_backbones(
        tmp_path / "backbones",
        splits[0],
        tokenizer=SHARED / "gpt2-tokenizer",
        vision_steps=20,
        text_steps=40,
    )
    args = TrainArguments(
        vision_model=str(vision),
        text_model=str(text),
        dataset=str(DATASET),
        output_dir=str(tmp_path / "pictures"),
        max_train_steps=12,
        eval_steps="6",
        captions_per_image=2,
        learning_rate=3e-3,
    )
    build_features([*splits[0], *splits[1]], tmp_path / "store", vision_model=vision, storage="float32")
    train(args)
    vision.rename(tmp_path / "put away")
    stored = {"vision_model": None, "features": str(tmp_path / "store"), "output_dir": str(tmp_path / "run")}
    train(replace(args, **stored))
    logs = [read_log(tmp_path / name) for name in ("run", "pictures")]
    ours, theirs = ([r.get("loss", r.get("validation_loss")) for r in log] for log in logs)
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert [r.get("samples") for r in logs[0]] == [r.get("samples") for r in logs[1]]
