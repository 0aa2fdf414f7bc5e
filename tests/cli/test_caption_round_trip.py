"""Photographs are captioned, a few captions are corrected, and a captioner is trained on them."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from processes import options
from small_models import ADAPTER, SHARED_DATA, read_lines

from ituning_hf.cli import main
from ituning_hf.data.loading import load_captioned_images

IMAGES = SHARED_DATA / "flickr8k-mini" / "images"


@pytest.mark.skipif(not IMAGES.is_dir(), reason=f"{SHARED_DATA} has no photographs")
def test_captions_are_corrected_and_trained_on(saved_captioner, backbones, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos, rest = Path("photos"), Path("rest")
    for folder in (photos, rest):
        folder.mkdir()
    for i, image in enumerate(sorted(IMAGES.iterdir())[:20]):
        shutil.copy(image, photos if i < 14 else rest)
    search = ["--num_beams", "2", "--max_new_tokens", "6", "--device", "cpu"]
    prompt = ["--prompt", "a dog"]  # random weights can give an empty caption, which is not written
    caption = [
        "caption",
        "photos",
        "--model",
        str(saved_captioner),
        *search,
        *prompt,
        "--format",
        "imagefolder",
    ]
    assert main(caption) == 0
    rows = read_lines("photos/metadata.jsonl")
    for row in rows[:3]:
        row["captions"] = ["two red birds sit in a tree"]
    corrected = "".join(json.dumps(row) + "\n" for row in rows)
    Path("photos/metadata.jsonl").write_text(corrected)
    assert main(caption) == 0
    assert Path("photos/metadata.jsonl").read_text() == corrected
    images = load_captioned_images("photos", "all")
    assert [(image.name, [*image.captions]) for image in images] == [
        (row["file_name"], row["captions"]) for row in rows
    ]
    models = options(vision_model=backbones["vision"], text_model=backbones["text"], **ADAPTER)
    models += ["--max_caption_tokens", "24"]
    steps = ["--max_train_steps", "2", "--per_device_train_batch_size", "4", "--num_sample_captions", "0"]
    assert main(["train", "--dataset", "photos", *models, *steps, "--output_dir", "run"]) == 0
    assert main(["caption", "rest", "--model", "run/best", *search, *prompt, "--output", "rest.jsonl"]) == 0
    assert [row["image"] for row in read_lines("rest.jsonl")] == [
        str(path) for path in sorted(rest.iterdir())
    ]


@pytest.mark.parametrize("output", ["captions.jsonl", "captions.csv", "captions.parquet", "captions"])
def test_every_output_is_read_by_train(output, saved_captioner, backbones, tmp_path, monkeypatch):
    Path(tmp_path / "photos").mkdir()
    for i in range(4):
        Image.new("RGB", (40, 40), (60 * i, 250 - 60 * i, 90)).save(tmp_path / f"photos/{i}.png")
    caption = ["caption", str(tmp_path / "photos"), "--model", str(saved_captioner), "--prompt", "a dog"]
    assert (
        main([*caption, "--num_beams", "2", "--max_new_tokens", "4", "--output", str(tmp_path / output)]) == 0
    )
    models = options(vision_model=backbones["vision"], text_model=backbones["text"], **ADAPTER)
    models += ["--max_caption_tokens", "24"]
    monkeypatch.chdir("/")
    run = ["--output_dir", str(tmp_path / "run"), "--dry_run"]
    assert main(["train", "--dataset", str(tmp_path / output), *models, *run]) == 0
