"""Compute and store the features of images."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from filelock import FileLock
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..captioner.backbones_ituning import Backbone
from ..captioner.encoders_ituning import encoder_family
from ..data.columns import CaptionedImages, store_name
from ..data.images import UnreadableImageError
from ..data.inputs import PixelInputs
from ..data.workers import initialize_worker, usable_workers
from ..utils.devices import usable_device
from ..utils.errors import UserError, WorkError
from ..utils.files import existing_part, sync, write_json, writing_to
from ..utils.ranks import Rank
from ..utils.terminal import format_bytes
from .arguments import BuildArguments
from .spec import STORE_FILE, FeatureSpec, describe_encoder
from .store import SHARD_PATTERN, FeatureStore, hash_names, image_keys, image_version

logger = logging.getLogger(__name__)

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Row(NamedTuple):
    """An image's columns in the store, without its features."""

    name: str
    num_bytes: int
    digest: int
    error: str | None = None  # why the image cannot be read


class BuildResult(NamedTuple):
    """What one process has done."""

    num_encoded: int
    unreadable: dict[str, str]  # why images cannot be read, by name


def plan_build(images: CaptionedImages, args: BuildArguments) -> tuple[FeatureSpec, list[np.ndarray]]:
    """Determine the files to write: how their features are computed, and the indices of each file's images.

    The dataset is cut into shards, and what the store has is left out of each; some may be empty. So neither
    the files nor their number depend on what other processes write at the same time. Nothing is written.
    The errors are those of `build_features`.
    """
    folder, spec, todo = Path(args.output_dir), describe_encoder(args), _first_of_each_name(images)
    if (folder / STORE_FILE).exists():
        store = FeatureStore(folder)
        if differences := store.spec.differences(spec):
            raise UserError(
                f"the store in {folder} was built with different settings: {differences}. Use another "
                "folder, or the settings of that store"
            )
        store.require_unchanged(images)
        todo &= ~store.find(images)[1]
    elif folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise FileExistsError(f"{folder} contains files and is not a feature store: give another folder")
    num_bytes, free = int(todo.sum()) * spec.bytes_per_image, shutil.disk_usage(existing_part(folder)).free
    if num_bytes > free:
        raise OSError(
            f"the features of {todo.sum():,} images take {format_bytes(num_bytes)}, but the disk of "
            f"{folder} has only {format_bytes(free)} left: free some space, give a folder on another disk, "
            "or use --storage int8, which takes half as much as bfloat16"
        )
    size = args.shard_size
    return spec, [start + np.flatnonzero(todo[start : start + size]) for start in range(0, len(todo), size)]


def _first_of_each_name(images: CaptionedImages) -> np.ndarray:
    """Return a mask that leaves out repeated images; raise UserError if other images have the same name."""
    _, first, inverse = np.unique(image_keys(images), return_index=True, return_inverse=True)
    is_first = first[inverse] == np.arange(len(images))
    for i in np.flatnonzero(~is_first).tolist():
        image, other = images[i], images[int(first[inverse[i]])]
        if image.source != other.source and image_version(image) != image_version(other):
            raise UserError(
                f"two different images have the name {image.name!r}: build a store for each split "
                "(--splits), or rename the files"
            )
    return is_first


def build_features(
    images: CaptionedImages, args: BuildArguments, rank: Rank | None = None, progress: bool = False
) -> BuildResult:
    """Compute and store the features of images, or add missing images to a store.

    An interrupted build resumes when it is called again. Several processes may build one store: each encodes
    its share of the files. The files are identical in all these cases. An image that cannot be read is
    recorded and skipped; the next build tries it again.

    Args:
        images: The images, of one or more splits; the dataset that the settings name is not read.
        args: The settings.
        rank: Which of several processes this is; by default the only one.
        progress: Whether to show a progress bar on standard error.

    Raises:
        UserError: The store has other settings or other versions of the images, or is damaged; or two images
            have the same name. As for the errors below, the build did not start.
        CaptionerError: The encoder is not supported, or has no such layer.
        OSError: There is no such encoder, the folder contains other files, or the disk lacks space.
        WorkError: The build cannot continue, for example because the disk is full. The files that are
            complete are kept.
    """
    rank, folder = rank or Rank(0, 1, 0), Path(args.output_dir)
    device = usable_device(rank.device(args.device))
    spec, planned = plan_build(images, args)
    shards = [shard for shard in planned[rank.index :: rank.count] if len(shard)]
    with writing_to(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if not (folder / STORE_FILE).exists():
                write_json(folder / STORE_FILE, asdict(spec))
    # A batch is within one shard, so a resumed build has the same batches as an uninterrupted one.
    batches = [np.split(shard, range(args.batch_size, len(shard), args.batch_size)) for shard in shards]
    loader = DataLoader(
        _BatchDataset(images, [batch for shard in batches for batch in shard], spec),
        batch_size=None,
        num_workers=usable_workers(args.dataloader_num_workers),
        worker_init_fn=_init_worker,
        generator=torch.Generator(),  # so the caller's random state does not change
    )
    num_encoded, unreadable = 0, dict[str, str]()
    bar = tqdm(total=sum(map(len, shards)), unit="image", disable=not progress)
    with bar, logging_redirect_tqdm() if progress else nullcontext():
        encoded = _encode(loader, spec, device) if shards else iter(())
        for shard in batches:
            rows, parts = [], []
            for _ in shard:
                found, features = next(encoded)
                rows += found
                parts.append(pack(features, spec.storage))
                bar.update(len(found))
            failed = {row.name: row.error for row in rows if row.error is not None}
            if len(failed) < len(rows) or not failed.keys() <= FeatureStore(folder).unreadable.keys():
                _write_shard(folder, spec, rows, parts)
            num_encoded += len(rows) - len(failed)
            unreadable |= failed
    return BuildResult(num_encoded, unreadable)


class _BatchDataset(Dataset[tuple[torch.Tensor, list[Row]]]):
    """Batches of pixel values and of rows. An unreadable image has zeros: the batch keeps its shape."""

    def __init__(self, images: CaptionedImages, batches: list[np.ndarray], spec: FeatureSpec) -> None:
        self.images, self.batches = images, batches
        self.inputs = PixelInputs(spec.make_image_processor())
        self.blank = self.inputs.blank()

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, list[Row]]:
        pixels, rows = [], []
        for index in self.batches[number].tolist():
            image = self.images[index]
            try:
                pixels.append(self.inputs.read(image, epoch=0, index=0))
                rows.append(Row(store_name(image.name), *image_version(image)))
            except (UnreadableImageError, OSError) as error:
                pixels.append(self.blank)
                rows.append(Row(store_name(image.name), 0, 0, store_name(str(error))))
        return torch.stack(pixels), rows


def _init_worker(worker_id: int) -> None:
    """Ignore stop signals, and print nothing when the parent process exits after one.

    Other errors in a worker are sent to the parent process, not printed here.
    """
    initialize_worker(worker_id)
    sys.excepthook = lambda *error: None


def _encode(
    loader: DataLoader[Any], spec: FeatureSpec, device: torch.device
) -> Iterator[tuple[list[Row], torch.Tensor]]:
    """Yield the rows and the features of each batch, (B, N, d_v)."""
    source = (spec.vision_model[f"vision_model_{field}"] for field in ("name_or_path", "revision"))
    model: Any = Backbone("vision", *source).load()
    model, dtype = model.to(device), _DTYPES.get(spec.mixed_precision)
    for pixel_values, rows in loader:
        with nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype):
            features = encoder_family(model.config).encode(
                model, pixel_values.to(device), spec.vision_feature_layer
            )
        for position, row in enumerate(rows):
            if row.error is not None:
                logger.warning("skipped: %s", row.error)
                features[position] = 0
        if not features.isfinite().all():
            raise WorkError(
                f"the features of {rows[0].name} or the images after it are not finite: use another "
                "--mixed_precision, or check the encoder's weights"
            )
        yield rows, features.cpu()


def pack(features: torch.Tensor, storage: str) -> dict[str, torch.Tensor]:
    """Convert features, (B, N, d_v), to the stored data type.

    Values beyond the largest bfloat16, 3.39e38, are clamped unless float32 is stored. "int8" adds `scales`,
    (B, N): the largest absolute value of each token maps to 127. The error is at most half a scale, plus
    rounding to bfloat16 when the features are read. The median error relative to a token's norm is 0.8% for a
    ViT-B/16 with random weights, 2.1% if one value in 768 is 10 times larger than the others, and 5.5% if it
    is 50 times larger, as in some pretrained encoders. bfloat16: 0.2%.
    """
    if storage == "float32":
        return {"features": features.float()}
    largest = torch.finfo(torch.bfloat16).max  # larger values would be rounded to infinity
    features = features.float().clamp(-largest, largest)
    if storage == "bfloat16":
        return {"features": features.to(torch.bfloat16)}
    scales = features.abs().amax(dim=-1) / 127
    steps = features / scales.masked_fill(scales == 0, 1).unsqueeze(-1)
    return {"features": steps.round().clamp(-127, 127).to(torch.int8), "scales": scales}


def _write_shard(
    folder: Path, spec: FeatureSpec, rows: Sequence[Row], parts: list[dict[str, torch.Tensor]]
) -> None:
    """Write a shard atomically, under a name that depends on its images alone.

    Raises:
        WorkError: The file cannot be written; no partial file is left.
    """
    known = hashlib.sha256(repr([(row.name, row.error is None) for row in rows]).encode()).hexdigest()
    path = folder / SHARD_PATTERN.replace("*", known[:16])
    # The draft is this process's own: another process may be writing the same shard.
    draft = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.partial")
    tensors = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    parts.clear()  # frees their memory
    columns = dict(zip(Row._fields, zip(*rows, strict=True), strict=True)) | {
        "key": hash_names(r.name for r in rows)
    }
    columns |= {name: _as_column(tensor) for name, tensor in tensors.items()}
    try:
        with pa.OSFile(str(draft), "wb") as file, pa.ipc.new_file(file, spec.schema) as writer:
            writer.write_batch(pa.record_batch([columns[name] for name in spec.schema.names], spec.schema))
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


def _as_column(tensor: torch.Tensor) -> pa.Array:
    """Return a column with the bytes of each row of a tensor, without copying them."""
    rows = tensor.contiguous().flatten(1).view(torch.uint8).numpy()
    return pa.Array.from_buffers(pa.binary(rows.shape[1]), len(rows), [None, pa.py_buffer(rows)])
