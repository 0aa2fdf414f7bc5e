import json
from collections.abc import Callable
from pathlib import Path

from ituning_hf.data.benchmarks import COCO, FLICKR30K, NOCAPS, NOCAPS_DOMAINS, explain_count
from ituning_hf.data.loading import count_splits

ADVICE = "Mend the data set, or give the number that is meant, or none."


def test_the_counts_agree_with_each_other() -> None:
    assert COCO.num_train_images == 113_287
    assert FLICKR30K.num_train_images == 29_000
    assert {split: sum(domains.values()) for split, domains in NOCAPS_DOMAINS.items()} == NOCAPS.splits


def test_a_split_that_is_not_there_is_named() -> None:
    found = {"train": 82_783, "val": 5_000, "test": 5_000}
    assert explain_count(113_287, 82_783, found) == (
        f"82,783 images. COCO: restval 30,504 expected, 0 found. {ADVICE}"
    )


def test_more_and_fewer_images_are_named() -> None:
    found = {"train": 28_990, "val": 1_015, "test": 1_000}
    assert explain_count(1_014, 1_015, found).endswith(
        f". Flickr30k: train 29,000 expected, 28,990 found; val 1,014 expected, 1,015 found. {ADVICE}"
    )
    assert explain_count(1_014, 1_000, FLICKR30K.splits).endswith(
        f": the splits are complete, and another one was meant. {ADVICE}"
    )


def test_a_number_of_no_benchmark_or_of_several_is_compared_with_none() -> None:
    assert explain_count(7, 8, {"val": 8}) == f"8 images (in all: val 8). {ADVICE}"
    assert explain_count(1_000, 8, {}) == f"8 images. {ADVICE}"


def test_counts_the_splits_of_a_karpathy_file(write_json: Callable[..., Path]) -> None:
    splits = ["restval", "val", "train", "restval", "restval"]
    path = write_json(
        [{"filename": f"{i}", "split": s, "sentences": [{"raw": "a"}]} for i, s in enumerate(splits)]
    )
    assert count_splits(path) == {"train": 1, "restval": 3, "val": 1}


def test_counts_the_splits_of_other_data(tmp_path: Path) -> None:
    lines = [json.dumps({"file_name": f"{i}.png", "caption": "a"}) for i in range(20)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    counts = count_splits(str(tmp_path), seed=1, val_share=0.5)
    assert set(counts) == {"train", "val"}
    assert sum(counts.values()) == 20
    assert count_splits("scenes") == {}
    images = [{"id": i, "file_name": f"{i}.png"} for i in range(20)]
    annotations = [{"image_id": i, "caption": "a"} for i in range(20)]
    for part in ("train", "val"):
        path = tmp_path / f"captions_{part}2017.json"
        path.write_text(
            json.dumps({"images": images, "annotations": annotations[: 20 if part == "train" else 3]})
        )
    assert count_splits(tmp_path / "captions_train2017.json") == {"train": 20, "val": 3}
