"""Stream tar shards as training does, and measure the start and whether memory stays constant.

    python examples/benchmark_stream.py --num_images 1000000 --output stream.json

The shards are hard links to one shard of 10,000 samples, each with an image of 700 bytes and a caption. The
images are read by the workers of a data loader, but not decoded. Linux only.

- start: seconds of processor time until the first batch arrives, without imports.
- memory: the resident memory above imports, without mapped files, after each tenth of the images.
- worker: the private memory of a worker above that after its first batches.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import tarfile
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

from benchmark_data import memory
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ituning_hf.data.sampler import SampleKey
from ituning_hf.data.shards import find_shards
from ituning_hf.data.stream import ShardStream, StreamSampler
from ituning_hf.data.workers import initialize_worker

SHARD_SIZE = 10_000
BATCH_SIZE = 256


class Images(Dataset[int]):
    """Reads the file of an image; returns the private memory of this process in MB."""

    def __getitem__(self, key: SampleKey) -> float:  # type: ignore[override]
        assert key.image is not None
        assert key.image.read().startswith(b"\xff\xd8")
        is_measured = key.index % 1000 == 0
        return memory("/proc/self/smaps_rollup", "Private_Clean|Private_Dirty") if is_measured else 0.0


def write_shards(folder: Path, num_images: int) -> None:
    """Write the shards."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(buffer, "JPEG")
    first = folder / "000000.tar"
    with tarfile.open(first, "w") as tar:
        for index in range(SHARD_SIZE):
            caption = f"a brown dog number {index} runs on the grass".encode()
            for suffix, content in (("jpg", buffer.getvalue()), ("txt", caption)):
                member = tarfile.TarInfo(f"{index:09}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    for number in range(1, math.ceil(num_images / SHARD_SIZE)):
        os.link(first, folder / f"{number:06}.tar")


def measure(dataset: str, num_images: int, num_workers: int) -> dict[str, Any]:
    """Stream images with a loader."""
    before, started = memory("/proc/self/status", "RssAnon"), time.process_time()
    stream = ShardStream(find_shards(dataset), seed=0, val_share=0.01)
    sampler = StreamSampler(stream, BATCH_SIZE, 1, 1, 0)
    options: dict[str, Any] = {"num_workers": num_workers, "worker_init_fn": initialize_worker}
    batches = iter(DataLoader(Images(), batch_sampler=sampler, collate_fn=max, **options))
    workers, levels = [next(batches)], []
    sampler.next_position()
    result: dict[str, Any] = {"start_cpu_seconds": time.process_time() - started}
    clock, steps = time.monotonic(), num_images // BATCH_SIZE
    for part in range(10):
        for private in islice(batches, steps * (part + 1) // 10 - steps * part // 10):
            sampler.next_position()
            workers.append(private)
        levels.append(memory("/proc/self/status", "RssAnon") - before)
    measured = [private for private in workers if private]
    return result | {
        "images": steps * BATCH_SIZE,
        "images_per_second": steps * BATCH_SIZE / (time.monotonic() - clock),
        "memory_mb": [round(level) for level in levels],
        "worker_mb": max(measured) - measured[0],
    }


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Write shards, stream them, and return what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--num_images", type=int, default=1_000_000)
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--output", type=Path, help="also write the results to this JSON file")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), options.num_images)
        result = measure(folder, options.num_images, options.num_workers)
    print(json.dumps(result, indent=2))
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    return result


if __name__ == "__main__":
    main()
