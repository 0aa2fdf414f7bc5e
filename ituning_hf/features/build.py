"""Compute and store the features of images."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..captioner.backbones_ituning import Backbone
from ..captioner.encoders_ituning import encoder_family
from ..data.columns import CaptionedImage
from ..data.images import UnreadableImageError
from ..data.inputs import PixelInputs
from ..data.workers import ignore_stop_signals, usable_workers
from ..utils.devices import usable_device
from ..utils.errors import UserError, WorkError
from ..utils.files import draft_of, exclusive_lock, existing_part, write_json
from ..utils.terminal import format_bytes
from .shards import ImageVersion, ShardIndex, image_version, pack, write_shard
from .spec import STORE_FILE, FeatureSpec, describe_encoder
from .store import FeatureStore

logger = logging.getLogger(__name__)

_HEADER_BYTES = 80  # approximate size of an image's entry in the header of its shard
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_Batch = Sequence[CaptionedImage]


@dataclass(frozen=True)
class BuildPlan:
    """The images that a build will encode."""

    spec: FeatureSpec  # how the features are computed
    records: list[CaptionedImage]  # the images to encode
    num_present: int  # images to skip: they are in the store, or unreadable
    unreadable: dict[str, str]  # the reasons, by name, for the unreadable ones among them

    @property
    def num_bytes(self) -> int:
        """The size on disk of the features to write."""
        return len(self.records) * (self.spec.bytes_per_image + _HEADER_BYTES)


@dataclass
class BuildResult:
    """The outcome of a build."""

    num_present: int  # images that were skipped: they were in the store, or are unreadable
    num_encoded: int  # images that were encoded
    unreadable: dict[str, str]  # the reasons, by name, for images that could not be read


def plan_build(
    records: Sequence[CaptionedImage], folder: str | os.PathLike[str], spec: FeatureSpec
) -> BuildPlan:
    """Determine the images to encode, without writing anything.

    Images that are in the store are skipped, and so are images that are still unreadable.

    Raises:
        UserError: The store was built with different settings, has features of other versions of the images
            or is damaged; or two different images have the same name.
        OSError: The folder is neither empty nor a feature store, or the disk does not have enough space.
    """
    folder = Path(folder)
    records = _one_image_per_name(records)
    skipped: set[str] = set()
    unreadable: dict[str, str] = {}
    if (folder / STORE_FILE).exists():
        store = FeatureStore(folder)
        if differences := store.spec.differences(spec.computation):
            raise UserError(
                f"the store in {folder} was built with different settings: {differences}. Use another "
                "folder, or the settings of that store"
            )
        store.require_unchanged(records)
        for record in records:
            if record.name in store.unreadable:
                try:
                    record.load()
                except UnreadableImageError as error:
                    unreadable[record.name] = str(error)
        skipped = store.names | unreadable.keys()
    elif folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise FileExistsError(f"{folder} contains files and is not a feature store: give another folder")
    todo = [record for record in records if record.name not in skipped]
    plan = BuildPlan(spec, todo, len(records) - len(todo), unreadable)
    free = shutil.disk_usage(existing_part(folder)).free
    if plan.num_bytes > free:
        raise OSError(
            f"the features of {len(todo):,} images take {format_bytes(plan.num_bytes)}, but the disk of "
            f"{folder} has only {format_bytes(free)} left: free some space, give a folder on another disk, "
            "or use --storage int8, which takes half as much as bfloat16"
        )
    return plan


def _one_image_per_name(records: Sequence[CaptionedImage]) -> list[CaptionedImage]:
    first: dict[str, CaptionedImage] = {}
    for record in records:
        other = first.setdefault(record.name, record)
        if other.source != record.source and image_version(other) != image_version(record):
            raise UserError(
                f"two different images have the name {record.name!r}: build a store for each split "
                "(--splits), or rename the files"
            )
    return list(first.values())


def build_features(
    records: Sequence[CaptionedImage],
    folder: str | os.PathLike[str],
    *,
    vision_model: str | os.PathLike[str],
    vision_revision: str | None = None,
    vision_feature_layer: int = -1,
    storage: str = "bfloat16",
    mixed_precision: str = "no",
    batch_size: int = 32,
    shard_size: int = 500,
    num_workers: int = 2,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> BuildResult:
    """Compute and store the features of images, or add missing images to a store.

    An interrupted build resumes when it is called again, and the resulting files are identical to those of an
    uninterrupted build. An image that cannot be read is recorded and skipped.

    Args:
        records: The images, of one or more splits.
        folder: The folder of the store; it is created if it does not exist.
        vision_model: A local folder or Hub id of a vision encoder, or of a full CLIP.
        vision_revision: Its revision on the Hub.
        vision_feature_layer: The hidden state to store; see `ITuningConfig`.
        storage: "bfloat16", "int8" (half as large; see `pack` for its error) or "float32".
        mixed_precision: "no", "bf16" or "fp16": the precision of the encoder's computation.
        batch_size: Images per batch. It may change the last bits of features.
        shard_size: Images per file; their features are kept in memory.
        num_workers: Processes that decode images; 0 decodes in this process.
        device: The device of the encoder; by default the best one available.
        progress: Whether to show a progress bar on standard error.

    Raises:
        UserError, CaptionerError, OSError: The build did not start: the encoder, a setting, the store or the
            images cannot be used, another build is running in the folder, or the disk does not have enough
            space.
        WorkError: The build cannot continue, for example because the disk is full. The files that are
            complete are kept.
    """
    target = usable_device(device)
    folder = Path(folder)
    spec = describe_encoder(
        vision_model,
        vision_revision=vision_revision,
        vision_feature_layer=vision_feature_layer,
        storage=storage,
        mixed_precision=mixed_precision,
    )
    plan_build(records, folder, spec)  # raises errors before anything is written
    with exclusive_lock(folder, str(folder), "build"):
        for draft in folder.glob(draft_of(folder / "*").name):  # incomplete files of a killed build
            draft.unlink()
        plan = plan_build(records, folder, spec)  # another build may have finished in the meantime
        if not (folder / STORE_FILE).exists():
            write_json(folder / STORE_FILE, asdict(spec))
        for reason in plan.unreadable.values():
            logger.warning("skipped: %s", reason)
        result = BuildResult(plan.num_present, 0, dict(plan.unreadable))
        if plan.records:
            # A batch is within one shard, so a resumed build has the same batches as an uninterrupted one.
            shards = [list(_cut(shard, batch_size)) for shard in _cut(plan.records, shard_size)]
            for index in _write_shards(folder, shards, spec, target, num_workers, progress):
                result.num_encoded += len(index.images)
                result.unreadable |= index.unreadable
    return result


def _cut(records: Sequence[CaptionedImage], size: int) -> Iterator[_Batch]:
    return (records[start : start + size] for start in range(0, len(records), size))


def _write_shards(
    folder: Path,
    shards: list[list[_Batch]],
    spec: FeatureSpec,
    device: torch.device,
    num_workers: int,
    progress: bool,
) -> Iterator[ShardIndex]:
    """Encode and write each shard, given as a list of batches; yield its index."""
    source = (spec.vision_model[f"vision_model_{field}"] for field in ("name_or_path", "revision"))
    model: Any = Backbone("vision", *source).load()
    model = model.to(device)
    loader = DataLoader(
        _BatchDataset([batch for shard in shards for batch in shard], spec),
        batch_size=None,
        num_workers=usable_workers(num_workers),
        worker_init_fn=_init_worker,
        generator=torch.Generator(),  # so the caller's random state does not change
    )
    loaded = iter(loader)
    total = sum(len(batch) for shard in shards for batch in shard)
    bar = tqdm(total=total, unit="image", disable=not progress)
    with bar, logging_redirect_tqdm() if progress else nullcontext():
        for shard in shards:
            index, parts = ShardIndex(), []
            for batch in shard:
                pixel_values, outcomes = next(loaded)
                for record, outcome in zip(batch, outcomes, strict=True):
                    if isinstance(outcome, str):
                        index.unreadable[record.name] = outcome
                        logger.warning("skipped: %s", outcome)
                    else:
                        index.images[record.name] = outcome
                readable = [row for row, outcome in enumerate(outcomes) if not isinstance(outcome, str)]
                features = _encode(model, pixel_values.to(device), spec)[readable]
                if not features.isfinite().all():
                    raise WorkError(
                        f"the features of {batch[0].name} or the images after it are not finite: use another "
                        "--mixed_precision, or check the encoder's weights"
                    )
                parts.append({key: tensor.cpu() for key, tensor in pack(features, spec.storage).items()})
                bar.update(len(batch))
            _write(folder, index, parts)
            yield index


def _encode(model: Any, pixel_values: torch.Tensor, spec: FeatureSpec) -> torch.Tensor:
    dtype = _DTYPES.get(spec.mixed_precision)
    with nullcontext() if dtype is None else torch.autocast(pixel_values.device.type, dtype=dtype):
        return encoder_family(model.config).encode(model, pixel_values, spec.vision_feature_layer)


def _write(folder: Path, index: ShardIndex, parts: list[dict[str, torch.Tensor]]) -> None:
    tensors = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    parts.clear()  # frees their memory
    try:
        write_shard(folder, index, tensors)
    except OSError as error:
        raise WorkError(
            f"{folder} cannot be written to ({error.strerror or error}). The files written so far are "
            "complete: free some space or change the permissions, then run the same command to resume"
        ) from error


class _BatchDataset(Dataset[tuple[torch.Tensor, list[ImageVersion | str]]]):
    """Batches of pixel values, with the version of each image or the reason why it is unreadable.

    An unreadable image is replaced with zeros, so that the shape of the batch does not change.
    """

    def __init__(self, batches: Sequence[_Batch], spec: FeatureSpec) -> None:
        self.batches = batches
        self.inputs = PixelInputs(spec.make_image_processor())
        self.blank = self.inputs.blank()

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, list[ImageVersion | str]]:
        pixels, outcomes = zip(*map(self._load, self.batches[index]), strict=True)
        return torch.stack(pixels), list(outcomes)

    def _load(self, record: CaptionedImage) -> tuple[torch.Tensor, ImageVersion | str]:
        try:
            return self.inputs.read(record, epoch=0, index=0), image_version(record)
        except (UnreadableImageError, OSError) as error:
            return self.blank, str(error)


def _init_worker(worker_id: int) -> None:
    """Ignore stop signals, and print nothing when the parent process exits after one.

    Other errors in a worker are sent to the parent process, not printed here.
    """
    ignore_stop_signals(worker_id)
    sys.excepthook = lambda *error: None
