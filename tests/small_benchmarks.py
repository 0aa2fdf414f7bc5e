"""Small datasets in the file layouts of the benchmarks, at the paths of the recipes."""

import json
from pathlib import Path
from typing import Any

from PIL import Image
from small_shards import write_shards

COLOURS = ["red", "green", "blue", "white", "black"]

# Images of each split. No two splits of a benchmark have the same size.
COCO = {"train": 7, "restval": 4, "val": 3, "test": 2}
FLICKR = {"train": 6, "val": 3, "test": 2}
NOCAPS = {"val": 4, "test": 3}


def make_all(root: Path) -> Path:
    """Write the datasets that the recipes read: `data/` and `photos/`."""
    for name, splits in (("coco", COCO), ("flickr30k", FLICKR), ("flickr8k", FLICKR)):
        write_karpathy(root / "data" / name, name, splits)
    write_nocaps(root / "data" / "nocaps")
    write_photos(root / "photos", 30)
    write_shards(root / "data" / "cc3m", [5, 4, 6], "cc3m-train-{:04}.tar")
    write_shards(root / "data" / "cc3m", [3], "cc3m-validation-{:04}.tar")
    return root


def write_photos(folder: Path, count: int) -> None:
    """Write images, and their captions in `metadata.jsonl`."""
    names = [_save(folder / f"{i}.png", i).name for i in range(count)]
    lines = [{"file_name": name, "captions": _captions(i)[:2]} for i, name in enumerate(names)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))


def write_karpathy(folder: Path, name: str, splits: dict[str, int]) -> None:
    """Write `dataset_{name}.json` and its images; COCO's are in a folder for each year and split."""
    entries = []
    for number, split in enumerate(split for split, count in splits.items() for _ in range(count)):
        images = ("train2014" if split == "train" else "val2014") if name == "coco" else "images"
        filename = f"{images}_{number:012d}.jpg"
        _save(folder / images / filename, number)
        extra = {"filepath": images, "cocoid": 900 + number} if name == "coco" else {}
        sentences = [
            {"raw": text, "tokens": text.split(), "imgid": number, "sentid": 5 * number + i}
            for i, text in enumerate(_captions(number))
        ]
        sentids = [sentence["sentid"] for sentence in sentences]
        entry = {"filename": filename, "imgid": number, "split": split, "sentids": sentids}
        entries.append(entry | extra | {"sentences": sentences})
    (folder / f"dataset_{name}.json").write_text(json.dumps({"images": entries, "dataset": name}))


def write_nocaps(folder: Path) -> None:
    """Write the captions of val, the info of test, and the images of both."""
    domains = ["in-domain", "near-domain", "out-domain", "near-domain"]
    files = {"val": "nocaps_val_4500_captions.json", "test": "nocaps_test_image_info.json"}
    for split, count in NOCAPS.items():
        names = [f"{number:016x}" for number in range(count)]
        images: list[dict[str, Any]] = []
        for number, name in enumerate(names):
            picture = _save(folder / split / f"{name}.jpg", number)
            images.append({"id": number, "open_images_id": name, "file_name": picture.name, "license": 0})
        content: dict[str, Any] = {
            "licenses": [],
            "info": {"description": f"nocaps {'validation' if split == 'val' else split} dataset"},
            "images": images,
        }
        if split == "val":
            for image, domain in zip(images, domains, strict=True):
                image["domain"] = domain
            captions = [(number, text) for number in range(count) for text in _captions(number) * 2]
            content["annotations"] = [
                {"id": i, "image_id": number, "caption": text} for i, (number, text) in enumerate(captions)
            ]
        (folder / files[split]).write_text(json.dumps(content))


def _captions(number: int) -> list[str]:
    colour = COLOURS[number % len(COLOURS)]
    return [f"{text} {colour}" for text in ("a picture of", "all of it is", "a wall in", "only", "very")]


def _save(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40 + number, 34), COLOURS[number % len(COLOURS)]).save(path)
    return path
