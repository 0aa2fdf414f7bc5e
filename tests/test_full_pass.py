"""A full pass over photographs by the README's commands: features, training, evaluation; and from pictures.

The backbones that the recipe names lie in a Hub cache as if they had been downloaded; they are small ones.
The data set lies where the recipe looks for it, with as many photographs as FULL_PASS_PHOTOS says.
"""

import json
import os
from pathlib import Path

import pytest
from readme_commands import ROOT, cache_as_downloaded, read_commands, run_command
from small_models import SHARED_DATA, read_log

from ituning_hf.data.loading import load_captioned_images
from ituning_hf.training.small_backbones import make_small_backbones

PHOTOS = SHARED_DATA / "flickr8k-mini"
NUM_PHOTOS = int(os.environ.get("FULL_PASS_PHOTOS", "120"))
BACKBONE_STEPS = int(os.environ.get("FULL_PASS_BACKBONE_STEPS", "60"))
DATASET = "data/flickr8k/dataset_flickr8k.json"
# What small backbones on a CPU ask for; all else is the recipe's.
SMALLER = "--num_train_epochs 2 --per_device_train_batch_size 16 --mixed_precision no --learning_rate 3e-3"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"the photographs of {PHOTOS.name} are not here"),
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipes, the data set where they look for it, and a Hub cache with their backbones."""
    folder = tmp_path_factory.mktemp("pass")
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / DATASET).parent.mkdir(parents=True)
    (folder / DATASET).with_name("images").symlink_to(PHOTOS / "images")
    content = json.loads((PHOTOS / "dataset_flickr8k_mini.json").read_text())
    by_split = {split: [i for i in content["images"] if i["split"] == split] for split in ("train", "val")}
    share = NUM_PHOTOS / len(content["images"])
    chosen = [image for images in by_split.values() for image in images[: round(share * len(images))]]
    held_out = [image for image in chosen if image["split"] == "val"]
    for image in held_out[len(held_out) // 2 :]:  # there is no test split
        image["split"] = "test"
    (folder / DATASET).write_text(json.dumps(content | {"images": chosen}))
    vision, text = make_small_backbones(
        folder / "made",
        load_captioned_images(folder / DATASET, "train"),
        tokenizer=SHARED_DATA / "gpt2-tokenizer",
        vision_steps=BACKBONE_STEPS,
        text_steps=BACKBONE_STEPS,
    )
    cache_as_downloaded(folder / "cache", "openai/clip-vit-base-patch16", vision)
    cache_as_downloaded(folder / "cache", "gpt2", text)
    return folder


@pytest.fixture(scope="module")
def counts(workplace: Path) -> dict[str, int]:
    return {
        split: len(load_captioned_images(workplace / DATASET, split)) for split in ("train", "val", "test")
    }


def losses(folder: Path) -> list[float]:
    return [record.get("loss", record.get("validation_loss")) for record in read_log(folder)]


def test_the_pass_as_it_is_written(workplace: Path, counts: dict[str, int]):
    commands = [words for words in read_commands("## The paper's benchmarks") if "features/flickr8k" in words]
    build, train, evaluate = commands
    assert (build[1], train[1], evaluate[1]) == ("features", "train", "evaluate")
    cache = workplace / "cache"
    train += [*SMALLER.split(), "--expected_train_images", str(counts["train"])]
    train += ["--expected_eval_images", str(counts["val"])]
    evaluate += ["--expected_images", str(counts["test"])]
    run_command(build, workplace, cache)
    run_command(train, workplace, cache)
    shown = run_command(evaluate, workplace, cache)
    assert f"{counts['test']} images" in shown
    metrics = json.loads((workplace / "outputs/flickr8k_test_base/metrics.json").read_text())["metrics"]
    assert {"bleu_4", "rouge_l", "cider"} <= metrics.keys()

    # The same from pictures, and from features in float32: the losses are equal to the float's tolerance.
    start = train.index("--features")
    from_pictures = [*train[:start], *train[start + 2 :], "--output_dir", "outputs/pictures"]
    run_command(from_pictures, workplace, cache)
    build[build.index("--output_dir") + 1] = train[start + 1] = "features/float32"
    run_command([*build, "--storage", "float32"], workplace, cache)
    run_command([*train, "--output_dir", "outputs/float32"], workplace, cache)
    names = ("pictures", "float32", "flickr8k_base")
    pictures, float32, bfloat16 = (losses(workplace / "outputs" / name) for name in names)
    assert len(pictures) > 2 * counts["train"] // 64
    for name, found in (("float32", float32), ("bfloat16", bfloat16)):
        apart = max(abs(a - b) / b for a, b in zip(found, pictures, strict=True))
        print(f"{name}: {len(found)} losses, at most {apart:.1e} of them apart")  # noqa: T201
    assert float32 == pytest.approx(pictures, rel=1e-5)
    assert bfloat16 == pytest.approx(pictures, rel=1e-3)
    samples = [[r.get("samples") for r in read_log(workplace / "outputs" / name)] for name in names[:2]]
    assert samples[0] == samples[1]
