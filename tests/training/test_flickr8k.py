"""Training on real input: photographs with human captions."""

from pathlib import Path

import pytest
import torch
from small_models import SHARED_DATA, validation_scores
from transformers import AutoModel, AutoProcessor, GPT2LMHeadModel

from ituning_hf import ITuningForCaptioning, ITuningProcessor
from ituning_hf.data.loading import load_captioned_images
from ituning_hf.training.arguments import TrainArguments
from ituning_hf.training.data import TrainingData
from ituning_hf.training.run import train
from ituning_hf.training.setup import SCENE_BACKBONES

DATASET = SHARED_DATA / "flickr8k-mini" / "dataset_flickr8k_mini.json"
REAL_BACKBONES = {
    "vision_model": str(SHARED_DATA / "backbones" / "vit-tiny16"),
    "text_model": str(SHARED_DATA / "backbones" / "whisper-base-decoder-as-gpt2"),
    "frozen_precision": "float32",
}
MINIATURES = {
    "vision_model": str(SCENE_BACKBONES / "vision"),
    "text_model": str(SCENE_BACKBONES / "text"),
}

pytestmark = pytest.mark.skipif(not DATASET.is_file(), reason=f"{SHARED_DATA} has no photographs")


@pytest.mark.parametrize(
    ("models", "num_images", "steps", "learning_rate", "gain"),
    [
        pytest.param(MINIATURES, 32, 12, 1e-2, 1.0, id="miniatures"),
        pytest.param(REAL_BACKBONES, 640, 120, 1e-4, 0.1, id="real", marks=pytest.mark.slow),
    ],
)
def test_an_adapter_trained_on_photographs_captions_others(
    tmp_path: Path, models: dict, num_images: int, steps: int, learning_rate: float, gain: float
):
    images = load_captioned_images(DATASET, "train")[:num_images]
    others = load_captioned_images(DATASET, "val")[:16]
    args = TrainArguments(
        **models,
        output_dir=str(tmp_path / "run"),
        max_train_steps=steps,
        eval_steps=str(steps),
        per_device_train_batch_size=8,
        captions_per_image=2,
        max_caption_tokens=32,
        learning_rate=learning_rate,
        num_sample_captions=0,
    )
    train(args, TrainingData(images, others))
    losses = validation_scores(args.output_dir, "loss")
    assert losses[steps] < losses[0] - gain

    folder = tmp_path / "run" / "best"
    model = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    ids = model.generate(**processor(images=[image.load() for image in others[:8]]), max_new_tokens=32)
    captions = processor.batch_decode(ids, skip_special_tokens=True)
    assert all(caption.strip() for caption in captions)


@pytest.mark.slow
def test_a_pair_of_real_models_starts_as_its_language_model_learns_and_is_saved(tmp_path: Path):
    vision, text = REAL_BACKBONES["vision_model"], REAL_BACKBONES["text_model"]
    model = ITuningForCaptioning.from_vision_text_pretrained(
        vision, text, adapter_layers=[3, 4, 5], dtype=torch.float32
    )
    processor = ITuningProcessor.from_vision_text_pretrained(vision, text)
    images = load_captioned_images(DATASET, "train")[:8]
    batch = processor(
        images=[image.load() for image in images], captions=[image.captions for image in images]
    )
    frozen = GPT2LMHeadModel.from_pretrained(text, dtype=torch.float32)
    starts = batch["input_ids"][::5, :6]  # of one caption for each image: without padding
    with torch.no_grad():
        assert torch.equal(model(batch["pixel_values"], starts).logits, frozen(starts).logits)

    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=2e-4)
    losses = []
    for _ in range(12):
        loss = model.train()(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3

    model.eval().save_pretrained(tmp_path)
    loaded = ITuningForCaptioning.from_pretrained(tmp_path, dtype=torch.float32)
    options = {"pixel_values": batch["pixel_values"], "max_new_tokens": 16, "num_beams": 3}
    captions = model.generate(**options)
    assert len(set(map(tuple, captions.tolist()))) > 1
    assert torch.equal(loaded.generate(**options), captions)
