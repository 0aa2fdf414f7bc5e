"""Compute and store the features of images."""

from __future__ import annotations

import logging
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from filelock import FileLock
from torch.utils.data import DataLoader
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..captioner.backbones_ituning import Backbone, load_backbone
from ..captioner.configuration_ituning import ITuningConfig
from ..captioner.encoders_ituning import encoder_family
from ..captioner.processing_ituning import load_image_processor
from ..data.columns import CaptionedImage, CaptionedImages, restore_name, store_name
from ..data.images import UnreadableImageError
from ..data.inputs import PixelInputs
from ..data.workers import initialize_worker, usable_workers
from ..utils.devices import default_dtype, usable_device
from ..utils.errors import UserError, WorkError
from ..utils.files import existing_part, sync, write_json, writing_to
from ..utils.ranks import Rank
from ..utils.terminal import format_bytes
from .arguments import BuildArguments
from .store import SHARD_PATTERN, STORE_FILE, FeatureSpec, FeatureStore, hash_bytes, image_version

logger = logging.getLogger(__name__)

Row = dict[str, Any]  # an image's columns in the store; see `FeatureSpec.schema`
Plan = tuple[FeatureSpec, list[np.ndarray]]


def plan_build(images: CaptionedImages, args: BuildArguments) -> Plan:
    """Return how features are computed, and the indices of the images of each file to write.

    The dataset is cut into shards, and what the store has is left out of each; some may be empty. So neither
    the files nor their number depend on what other processes write at the same time. Nothing is written.
    The errors are those of `build_features`.
    """
    encoder, folder = Backbone("vision", args.vision_model, args.vision_revision), Path(args.output_dir)
    config = ITuningConfig(**encoder.config_fields(), vision_feature_layer=args.vision_feature_layer)
    image_processor = load_image_processor(encoder.name_or_path, encoder.revision).to_dict()
    spec = FeatureSpec.of(config, image_processor, args.storage, args.mixed_precision)
    names, counts = images.column("name").value_counts().flatten()
    if len(repeated := names.filter(pa.array(np.greater(counts, 1)))):
        raise UserError(f"several images have the name {repeated[0].as_py()!r}: rename the files")
    todo = np.ones(len(images), bool)
    if (folder / STORE_FILE).exists():
        store = FeatureStore(folder)
        store.require_fits(config, image_processor, args.storage, args.mixed_precision)
        todo = ~store.require(images, complete=False)
    elif folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise FileExistsError(f"{folder} contains files and is not a feature store: give another folder")
    num_bytes, free = int(todo.sum()) * spec.num_bytes, shutil.disk_usage(existing_part(folder)).free
    if num_bytes > free:
        raise OSError(
            f"the features of {todo.sum():,} images take {format_bytes(num_bytes)}, but the disk of {folder} "
            f"has only {format_bytes(free)} left: free some space, use another disk, or try --storage int8"
        )
    size = args.shard_size
    return spec, [start + np.flatnonzero(todo[start : start + size]) for start in range(0, len(todo), size)]


def build_features(
    images: CaptionedImages, args: BuildArguments, rank: Rank | None = None, plan: Plan | None = None
) -> int:
    """Compute and store the features of images, or add missing images to a store.

    An interrupted build resumes when it is called again. Several processes may build one store: each encodes
    its share of the files. The files are identical in all these cases. An image that cannot be read is
    recorded and skipped; the next build tries it again. Returns the number of images that were encoded.

    Args:
        images: The images, of one or more splits; the dataset that the settings name is not read.
        args: The settings.
        rank: Which of several processes this is; by default the only one.
        plan: The result of `plan_build`, if it was called.

    Raises:
        UserError, CaptionerError, OSError: The images, the encoder or the folder cannot be used, the store
            was built with other settings or images, or the disk lacks space; before the build begins.
        WorkError: The build cannot continue, such as on a full disk. The complete files are kept.
    """
    rank, folder, size = rank or Rank(0, 1, 0), Path(args.output_dir), args.batch_size
    device = usable_device(rank.device(args.device))
    spec, shards = plan or plan_build(images, args)
    shards = [shard for shard in shards[rank.index :: rank.count] if len(shard)]
    with writing_to(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if not (folder / STORE_FILE).exists():
                write_json(folder / STORE_FILE, asdict(spec))
    loader: DataLoader[Any] = DataLoader(
        images,  # type: ignore[arg-type]
        # A batch is within one shard, so a resumed build has the same batches as an uninterrupted one.
        batch_sampler=[shard[i : i + size] for shard in shards for i in range(0, len(shard), size)],  # type: ignore[misc]
        collate_fn=partial(_read_batch, PixelInputs(spec.make_image_processor())),
        num_workers=usable_workers(args.dataloader_num_workers),
        worker_init_fn=initialize_worker,
        generator=torch.Generator(),  # so the caller's random state does not change
    )
    num_encoded, no_bar = 0, rank.index > 0 or None  # None: shown on a terminal only
    bar = tqdm(_encode(loader, spec, device), total=sum(map(len, shards)), unit="image", disable=no_bar)
    with bar, logging_redirect_tqdm():
        rows = iter(bar)
        for shard in shards:
            num_encoded += _write_shard(folder, spec, list(islice(rows, len(shard))))
    return num_encoded


def _read_batch(inputs: PixelInputs, images: list[CaptionedImage]) -> tuple[torch.Tensor, list[Row]]:
    """Return pixels, (B, 3, H, W), and rows. An unreadable image has zeros, so that B is constant."""
    pixels, rows = [], []
    for image in images:
        name = store_name(image.name)
        row = {"key": hash_bytes(name.encode()), "name": name, "num_bytes": 0, "digest": 0, "error": None}
        try:
            values = inputs.read(image, epoch=0, index=0)
            row["num_bytes"], row["digest"] = image_version(image)
        except (UnreadableImageError, OSError) as error:
            values, row["error"] = inputs.blank(), store_name(str(error))
        pixels.append(values)
        rows.append(row)
    return torch.stack(pixels), rows


def _encode(loader: DataLoader[Any], spec: FeatureSpec, device: torch.device) -> Iterator[Row]:
    """Load the encoder, and yield the row of each image."""
    config = ITuningConfig(**spec.vision_model)
    model = load_backbone("vision", config, None, {}, dtype=default_dtype(device)).to(device)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(spec.mixed_precision)
    for pixel_values, rows in loader:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            pixel_values = pixel_values.to(device)
            features = encoder_family(model.config).encode(model, pixel_values, spec.vision_feature_layer)
        if not features.to(torch.bfloat16).isfinite().all():  # the storage with the smallest range
            raise WorkError(
                f"the features of {rows[0]['name']} or the images after it are not finite: use another "
                "--mixed_precision, or check the encoder's weights"
            )
        for row, content in zip(rows, spec.pack(features.cpu()).numpy(), strict=True):
            if row["error"] is not None:
                logger.warning("skipped: %s", row["error"])
            yield row | {"features": content.tobytes() if row["error"] is None else None}


def _write_shard(folder: Path, spec: FeatureSpec, rows: list[Row]) -> int:
    """Write a shard atomically, named after its images, and return the number of those with features."""
    failed = {restore_name(row["name"]) for row in rows if row["error"] is not None}
    if len(failed) == len(rows) and failed <= FeatureStore(folder).unreadable.keys():
        return 0
    known = repr([(row["name"], row["error"] is None) for row in rows]).encode()
    path = folder / SHARD_PATTERN.replace("*", f"{hash_bytes(known):016x}")
    # The draft is this process's own: another process may be writing the same shard.
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with pa.OSFile(str(draft), "wb") as file, pa.ipc.new_file(file, spec.schema) as writer:
            writer.write_batch(pa.RecordBatch.from_pylist(rows, spec.schema))
        sync(draft)
        draft.replace(path)
        sync(folder)
    except OSError as error:
        raise WorkError(
            f"{folder} cannot be written to ({error.strerror or error}). The files written so far are "
            "complete: free some space or change the permissions, then run the same command to resume"
        ) from error
    finally:
        for leftover in folder.glob(f".{path.name}.*.partial"):  # also of killed builds
            leftover.unlink(missing_ok=True)
    return len(rows) - len(failed)
