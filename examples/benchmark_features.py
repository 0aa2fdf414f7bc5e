"""How fast stored features are read, beside computing them, and beside what training takes of them.

    python examples/benchmark_features.py                 # Base size: CLIP ViT-B/16, GPT-2
    python examples/benchmark_features.py --size small    # seconds, to see that it runs
    python examples/benchmark_features.py --dataset dataset_flickr8k.json --image_root images/

Features are read in random order and batched as training does, in one process without workers, of which
training has two and more: with the store's pages in the system's cache, and with none of them there, which is
looked up page by page before each reading. Pictures, drawn ones unless a data set is given, are decoded and
encoded in the same process. A training step is forward, backward and the optimizer's, of five captions of 14
tokens for each image, from features. Weights are random. All take turns, so that a busy machine slows all of
them; what is printed are medians after a first round that does not count.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.arguments import quiet, writable_folder
from benchmarks.page_cache import can_drop, drop_from_cache
from benchmarks.sizes import SIZES, captioner_config
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPImageProcessorPil

from ituning_hf import ITuningConfig, ITuningForCaptioning
from ituning_hf.cli.arguments import positive
from ituning_hf.data.loading import load_captioned_images
from ituning_hf.data.records import CaptionedImage
from ituning_hf.features.pictures import Picture
from ituning_hf.features.plan import format_bytes
from ituning_hf.features.quantisation import pack
from ituning_hf.features.shards import ShardIndex, list_shards, write_shard
from ituning_hf.features.spec import STORAGES, FeatureSpec, feature_bytes, write_spec
from ituning_hf.features.store import FeatureStore

# Images of the paper's data sets, in all splits.
DATA_SETS = {"COCO": 123_287, "Flickr30k": 31_014, "Flickr8k": 8_000}
CAPTIONS, TOKENS = 5, 14


def make_store(folder: Path, config: ITuningConfig, storage: str, num_images: int) -> FeatureStore:
    """Write a store of numbers that nothing computed, in shards of 500 images as `features build` does."""
    vision = config.vision_config
    tokens = (vision.image_size // vision.patch_size) ** 2 + 1
    preparation = CLIPImageProcessorPil(
        size={"shortest_edge": vision.image_size},
        crop_size={"height": vision.image_size, "width": vision.image_size},
    )
    spec = FeatureSpec(
        vision_model_name_or_path="random",
        vision_model_revision=None,
        vision_model_fingerprint="0" * 32,
        vision_config=config.to_dict()["vision_config"],
        image_processor=preparation.to_dict(),
        vision_feature_layer=-1,
        storage=storage,
        mixed_precision="no",
        num_tokens=tokens,
        hidden_size=vision.hidden_size,
    )
    folder.mkdir()
    write_spec(folder, spec)
    names = [f"{i:06d}.jpg" for i in range(num_images)]
    for start in range(0, num_images, 500):
        part = names[start : start + 500]
        packed = {name: pack(torch.randn(1, tokens, vision.hidden_size), storage) for name in part}
        index = ShardIndex(spec.digest(), {name: Picture(start, "0" * 16) for name in part}, {})
        write_shard(folder, index, {name: {k: t[0] for k, t in p.items()} for name, p in packed.items()})
    return FeatureStore(folder)


class _Features(Dataset[torch.Tensor]):
    def __init__(self, store: FeatureStore) -> None:
        self.store, self.names = store, sorted(store.names)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.store.read(self.names[index])


def reading(folder: Path, batch_size: int) -> Callable[[], int]:
    """Return what opens a store, reads all of it in random order, and says of how many images."""

    def read() -> int:
        features = _Features(FeatureStore(folder))
        order = random.sample(range(len(features)), len(features))
        return sum(len(batch) for batch in DataLoader(features, batch_size, sampler=order))

    return read


def encoding(
    records: Sequence[CaptionedImage], model: ITuningForCaptioning, batch_size: int, encode: bool
) -> Callable[[], int]:
    """Return what decodes and prepares pictures, and encodes them if it is to."""
    size = model.config.vision_config.image_size
    prepare = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})

    def run() -> int:
        for start in range(0, len(records), batch_size):
            images = [record.load() for record in records[start : start + batch_size]]
            pixel_values = prepare(images=images, return_tensors="pt")["pixel_values"]
            if encode:
                model.get_image_features(pixel_values)
        return len(records)

    return run


def training(model: ITuningForCaptioning, features: torch.Tensor) -> Callable[[], int]:
    """Return what takes an optimizer step from features, of shape (num_images, N, d_v)."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4)
    rows = len(features) * CAPTIONS
    ids = torch.randint(0, model.config.text_config.vocab_size, (rows, TOKENS))

    def step() -> int:
        model(visual_features=features, input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return len(features)

    return step


def measure(
    ways: dict[str, Callable[[], int]], before: dict[str, Callable[[], None]], rounds: int
) -> dict[str, float]:
    """Return each way's images per second, the median of the rounds after the first."""
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 + rounds):
        for name, way in ways.items():
            before.get(name, lambda: None)()
            start = time.perf_counter()
            speeds[name].append(way() / (time.perf_counter() - start))
    return {name: statistics.median(values[1:]) for name, values in speeds.items()}


def compare(options: argparse.Namespace, records: Sequence[CaptionedImage], folder: Path) -> dict[str, float]:
    """Measure everything; return images per second by name."""
    config = captioner_config(options.size)
    model = ITuningForCaptioning(config)
    ways, before = dict[str, Callable[[], int]](), dict[str, Callable[[], None]]()
    for storage in STORAGES:
        place = folder / storage
        spec = make_store(place, config, storage, options.images).spec
        ways[f"read {storage}, cold"] = ways[f"read {storage}, warm"] = reading(place, options.batch_size)
        before[f"read {storage}, cold"] = _dropper(place)
    features = torch.randn(options.batch_size, spec.num_tokens, spec.hidden_size)
    for name, encode in (("decode", False), ("decode and encode", True)):
        ways[f"{name} pictures"] = encoding(records, model.eval(), options.batch_size, encode)
    ways["training step"] = training(model.train(), features)
    return measure(ways, before, options.rounds)


def _dropper(folder: Path) -> Callable[[], None]:
    return lambda: drop_from_cache(list_shards(folder))


def size_lines(config: ITuningConfig) -> Iterator[str]:
    """Yield what the features of the paper's data sets take on disk."""
    vision = config.vision_config
    tokens = (vision.image_size // vision.patch_size) ** 2 + 1
    yield f"{'on disk':<28}" + "".join(f"{storage:>12}" for storage in STORAGES)
    sizes = [feature_bytes(tokens, vision.hidden_size, storage) for storage in STORAGES]
    yield f"{'an image, bytes':<28}" + "".join(f"{size:>12,}" for size in sizes)
    for name, count in DATA_SETS.items():
        label = f"{name} ({count:,})"
        yield f"{label:<28}" + "".join(f"{format_bytes(count * size):>12}" for size in sizes)


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Any = parser.add_argument
    add("--size", choices=SIZES, default="base", help="of the models (%(default)s)")
    add("--images", type=positive, default=1000, help="in the store (%(default)s)")
    add("--pictures", type=positive, default=16, help="decoded and encoded each round (%(default)s)")
    add("--batch_size", type=positive, default=8, help="images of a batch and of a step (%(default)s)")
    add("--rounds", type=positive, default=5, help="that count (%(default)s)")
    add("--dataset", default="scenes", help="pictures, as for ituning train (%(default)s)")
    add("--image_root", help="the folder that the data set's file names are relative to")
    add("--folder", type=writable_folder, help="for the stores, removed again: a disk (the temporary one)")
    options = parser.parse_args()
    try:
        records = load_captioned_images(options.dataset, "train", image_root=options.image_root)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if options.pictures > len(records):
        parser.error(f"--pictures {options.pictures}: the data set has {len(records)}.")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if not can_drop(Path(folder)):
            parser.error("files stay in memory here, so that none is read cold: give a --folder on a disk.")
        with quiet():
            speeds = compare(options, random.sample(records, options.pictures), Path(folder))
    taken = speeds["training step"]
    print(f"{'':<28}{'images/s':>12}{'of a step':>12}")
    for name, speed in speeds.items():
        print(f"{name:<28}{speed:>12,.1f}{speed / taken:>11,.2f}x")
    print()
    print("\n".join(size_lines(captioner_config(options.size))))


if __name__ == "__main__":
    main()
