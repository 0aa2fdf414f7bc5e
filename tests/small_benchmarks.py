"""Small data sets in the file layouts of the benchmarks, at the paths of the recipes."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

COLOURS = ["red", "green", "blue", "white", "black"]

# Images of each split. No two splits of a benchmark have the same size.
COCO = {"train": 7, "restval": 4, "val": 3, "test": 2}
FLICKR = {"train": 6, "val": 3, "test": 2}
NOCAPS = {"val": 4, "test": 3}


def make_all(root: Path) -> Path:
    """Write the data sets that the recipes read: `data/` and `photos/`."""
    coco = [
        {"filepath": "train2014" if split == "train" else "val2014", "cocoid": 900 + number}
        for number, split in enumerate(_splits(COCO))
    ]
    write_karpathy(root / "data" / "coco", "coco", COCO, coco)
    for name in ("flickr30k", "flickr8k"):
        write_karpathy(root / "data" / name, name, FLICKR, [{}] * sum(FLICKR.values()), images="images")
    write_nocaps(root / "data" / "nocaps")
    photos = root / "photos"
    lines = [
        {"file_name": _save(photos / f"{i}.png", i).name, "captions": _captions(i)[:2]} for i in range(30)
    ]
    (photos / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return root


def write_karpathy(
    folder: Path, name: str, splits: dict[str, int], fields: list[dict[str, Any]], images: str = ""
) -> Path:
    """Write `dataset_{name}.json` and its images."""
    entries = []
    for number, (split, extra) in enumerate(zip(_splits(splits), fields, strict=True)):
        filename = f"{extra.get('filepath', name)}_{number:012d}.jpg"
        _save(folder / images / extra.get("filepath", "") / filename, number)
        sentences = [
            {"raw": text, "tokens": text.split(), "imgid": number, "sentid": 5 * number + i}
            for i, text in enumerate(_captions(number))
        ]
        sentids = [sentence["sentid"] for sentence in sentences]
        entries.append(
            {"filename": filename, "imgid": number, "split": split, "sentids": sentids}
            | extra
            | {"sentences": sentences}
        )
    path = folder / f"dataset_{name}.json"
    path.write_text(json.dumps({"images": entries, "dataset": name}))
    return path


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


def _splits(counts: dict[str, int]) -> list[str]:
    return [split for split, count in counts.items() for _ in range(count)]


def _captions(number: int) -> list[str]:
    colour = COLOURS[number % len(COLOURS)]
    return [
        f"a {colour} picture",
        f"all of it is {colour}",
        f"{colour}",
        f"one {colour} wall",
        f"only {colour}",
    ]


def _save(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40 + number, 34), COLOURS[number % len(COLOURS)]).save(path)
    return path
