"""Which evaluation it is: digests by which work that was begun, or finished, is known again."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ..captioner.modeling_ituning import ITuningForCaptioning
from ..features.shards import image_size
from ..features.store import FeatureStore
from .arguments import EvaluateArguments
from .images import BenchmarkImages
from .scoring import describe_scorers

# What the captions do not depend on, beside how they are scored and where the report goes.
_WITHOUT_EFFECT = (
    *("expected_images", "dataset_name", "max_unreadable_share", "dataloader_num_workers", "java"),
    *("clip_model", "output_dir", "overwrite", "no_card", "dry_run"),
)


def identify_captions(
    args: EvaluateArguments,
    benchmark: BenchmarkImages,
    model: ITuningForCaptioning,
    preparation: dict[str, Any],
) -> str:
    """Return a digest of all that the captions depend on: settings, images, and the captioner.

    The frozen models' weights are in the captioner's configuration, as fingerprints. Images count by their
    names: one that is mended does not make the others' captions another evaluation's.

    Args:
        args: The settings.
        benchmark: The images.
        model: The captioner.
        preparation: What makes its inputs of a picture; JSON.
    """
    settings = {name: value for name, value in args.to_dict().items() if name not in _WITHOUT_EFFECT}
    names = [image.name for image in benchmark.images]
    configs = [model.config.to_dict(), model.generation_config.to_dict(), preparation]
    digest = hashlib.sha256(json.dumps([settings, names, configs], sort_keys=True).encode())
    for name, tensor in sorted(model.adapter_state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]


def identify_report(
    args: EvaluateArguments, benchmark: BenchmarkImages, captions: Any, store: FeatureStore | None
) -> str:
    """Return a digest of all that the report depends on: captions, pictures, and how they are scored.

    Here a picture that was mended or replaced counts: the report leaves it out, or is of the earlier one. It
    is known by its size.

    Args:
        args: The settings.
        benchmark: The images, and what people wrote about them.
        captions: What `identify_captions` returned, or the captions themselves where they were given; JSON.
        store: The pictures' features, if they are read.
    """
    sizes = [image_size(image) for image in benchmark.images] if args.reads_pictures else None
    pictures = [sizes, None if store is None else store.fingerprint(benchmark.images)]
    images = [(image.name, image.domain, list(image.captions)) for image in benchmark.images]
    scorers = describe_scorers(args) if benchmark.has_references else []  # Java may have come since
    settings = [benchmark.dataset, benchmark.split, benchmark.ids, args.expected_images, args.clip_model]
    content = json.dumps([captions, pictures, images, scorers, settings])
    return hashlib.sha256(content.encode()).hexdigest()[:16]
