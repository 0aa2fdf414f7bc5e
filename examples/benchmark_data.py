"""Measure how long training takes to read a large dataset, and how much memory it and its workers need.

    python examples/benchmark_data.py --num_images 1000000 --output data.json

The script writes datasets of tiny files to a temporary folder. For each, a new process does what training
does before its first step: it reads the train and val splits, checks that the files exist, computes the
fingerprint and looks for captions that are too long. Then it forks a worker, as a data loader does, which
reads rows in random order. Linux only.

- CPU: seconds of processor time, without imports.
- peak: the highest resident memory above imports; it includes pages of mapped files, which the system drops
  when it needs memory.
- anonymous: the highest resident memory above imports without such pages, sampled every 10 ms.
- worker: the private memory of the worker (`Private_Clean` and `Private_Dirty` in `/proc/self/smaps_rollup`)
  above that of a worker that reads one row.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ituning_hf import ITuningProcessor
from ituning_hf.data.arguments import DatasetArguments
from ituning_hf.data.dataset import over_long_share
from ituning_hf.training.data import TrainingData
from ituning_hf.training.setup import SCENE_BACKBONES

FILES_PER_FOLDER = 1000
LINKS_PER_FILE = 50_000  # file systems limit the number of hard links
ROWS_READ = 200_000  # by a worker
CAPTIONS = 5


def captions(index: int) -> list[str]:
    """Return five captions of about 50 characters."""
    return [f"a brown dog number {index} runs on the grass, view {view}" for view in range(CAPTIONS)]


def names(num_images: int) -> Iterator[str]:
    """Yield the names of the image files."""
    return (f"{index // FILES_PER_FOLDER:05}/{index:09}.png" for index in range(num_images))


def write_files(folder: Path, num_images: int) -> None:
    """Write the image files: hard links to a few small images."""
    for index, name in enumerate(names(num_images)):
        path = folder / name
        if index % FILES_PER_FOLDER == 0:
            path.parent.mkdir(parents=True)
        if index % LINKS_PER_FILE == 0:
            Image.new("RGB", (8, 8)).save(path)
            first = path
        else:
            os.link(first, path)


def write_image_folder(folder: Path, num_images: int) -> Path:
    """Write `metadata.jsonl` next to the images."""
    with (folder / "images" / "metadata.jsonl").open("w") as file:
        for index, name in enumerate(names(num_images)):
            file.write(json.dumps({"file_name": name, "captions": captions(index)}) + "\n")
    return folder / "images"


def write_coco(folder: Path, num_images: int) -> Path:
    """Write COCO captions."""
    path = folder / "captions.json"
    with path.open("w") as file:
        file.write('{"images": [')
        for index, name in enumerate(names(num_images)):
            file.write(", " * (index > 0) + json.dumps({"id": index, "file_name": name}))
        file.write('], "annotations": [')
        for index in range(num_images):
            rows = [{"image_id": index, "id": index, "caption": text} for text in captions(index)]
            file.write(", " * (index > 0) + json.dumps(rows)[1:-1])
        file.write("]}")
    return path


def write_parquet(folder: Path, num_images: int) -> Path:
    """Write a table with images of 200 bytes, which are not decoded here."""
    path, size = folder / "images.parquet", 10_000
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema({"image": image, "captions": pa.list_(pa.string())})
    rng = random.Random(0)
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, num_images, size):
            indices = range(start, min(start + size, num_images))
            images = [{"bytes": rng.randbytes(200), "path": None} for _ in indices]
            writer.write_table(pa.table([images, [captions(i) for i in indices]], schema=schema))
    return path


FORMATS: dict[str, Callable[[Path, int], Path]] = {
    "image folder": write_image_folder,
    "COCO JSON": write_coco,
    "Parquet": write_parquet,
}


def memory(path: str, pattern: str) -> float:
    """Return the sum of some fields of a file in `/proc`, in MB."""
    return sum(map(int, re.findall(rf"^(?:{pattern}):\s+(\d+) kB", Path(path).read_text(), re.M))) / 1000


class AnonymousPeak(threading.Thread):
    """Samples the resident memory without files."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = self.peak = memory("/proc/self/status", "RssAnon")

    def run(self) -> None:
        """Sample until the process ends."""
        while True:
            self.peak = max(self.peak, memory("/proc/self/status", "RssAnon"))
            time.sleep(0.01)


def worker_memory(images: Any, rows: int) -> float:
    """Return the private memory of a forked process after it reads rows in random order, in MB."""
    receiver, sender = os.pipe()
    if os.fork() == 0:
        rng = random.Random(1)
        for _ in range(rows):
            len(images[rng.randrange(len(images))].captions)
        os.write(sender, str(memory("/proc/self/smaps_rollup", "Private_Clean|Private_Dirty")).encode())
        os._exit(0)
    os.wait()
    return float(os.read(receiver, 100))


def measure(dataset: str, image_root: str | None) -> dict[str, float]:
    """Measure the start of training in this process."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the highest resident memory
    before, anonymous = memory("/proc/self/status", "VmRSS"), AnonymousPeak()
    anonymous.start()
    started = time.process_time()
    train, val = DatasetArguments(dataset=dataset, image_root=image_root).load_splits(
        ["train", "val"], seed=0
    )
    loaded = time.process_time()
    data = TrainingData(train, val)
    data.fingerprint()
    backbones = SCENE_BACKBONES / "vision", SCENE_BACKBONES / "text"
    over_long_share(train, ITuningProcessor.from_vision_text_pretrained(*backbones), 40)
    result = {
        "images": len(train) + len(val),
        "loading_cpu_seconds": loaded - started,
        "cpu_seconds": time.process_time() - started,
        "peak_mb": memory("/proc/self/status", "VmHWM") - before,
        "anonymous_mb": anonymous.peak - anonymous.before,
    }
    result["worker_mb"] = worker_memory(data.train, ROWS_READ) - worker_memory(data.train, 1)
    return result


def main(argv: list[str] | None = None) -> None:
    """Write the datasets and measure each in a new process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--num_images", type=int, default=1_000_000)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--output", type=Path, help="also write the results to this JSON file")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)  # in a new process
    options = parser.parse_args(argv)
    if options.measure:
        dataset, image_root = options.measure
        print(json.dumps(measure(dataset, image_root or None)))
        return
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if {*options.formats} != {"Parquet"}:
            write_files(folder / "images", options.num_images)
        (folder / "temporary").mkdir()
        variables = {"TMPDIR": str(folder / "temporary"), "HF_HOME": str(folder / "cache")}
        for name in options.formats:
            dataset = FORMATS[name](folder, options.num_images)
            image_root = str(folder / "images") if name == "COCO JSON" else ""
            command = [sys.executable, __file__, "--measure", str(dataset), image_root]
            done = subprocess.run(
                command, env=os.environ | variables, stdout=subprocess.PIPE, text=True, check=True
            )
            found = results[name] = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{name:<14}{found['images']:>12,.0f} images{found['cpu_seconds']:>8.1f} s CPU "
                f"(loading {found['loading_cpu_seconds']:.1f}){found['peak_mb']:>9.0f} MB peak"
                f"{found['anonymous_mb']:>9.0f} MB anonymous{found['worker_mb']:>9.1f} MB worker",
                flush=True,
            )
    if options.output is not None:
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
