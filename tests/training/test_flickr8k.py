"""The main job on real input: photographs with human captions, and GPT-2's real tokenizer."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoProcessor

from ituning_hf.data import load_captioned_images
from ituning_hf.training import TrainArguments, make_small_backbones, train

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
DATASET = SHARED / "flickr8k-mini" / "dataset_flickr8k_mini.json"

pytestmark = pytest.mark.skipif(
    not DATASET.is_file(), reason=f"{DATASET.parent} is not there: no photographs to train on"
)


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
