"""`ituning features`: compute the vision encoder's features of images once, and store them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.arguments import SPLITS
from ..features.arguments import BuildArguments
from ..training.arguments import DEFAULT_VISION_MODEL
from ..utils.rules import FOLDER
from ..utils.settings import REQUIRED, Settings, option, read_settings
from . import choose_command

if TYPE_CHECKING:
    from ..data.columns import CaptionedImages

_COMMANDS = {
    "build": "compute features and store them, or resume that",
    "info": "describe a store",
}
_DESCRIPTION = """Store the frozen vision encoder's features of a dataset's images, so that each
image is encoded only once."""
_BUILD_DESCRIPTION = """Compute the frozen vision encoder's features of a dataset's images and store
them. Images that are in the store already are skipped."""
_BUILD_EXAMPLES = f"""examples:
  ituning features build --dataset photos/ \\
      --vision_model {DEFAULT_VISION_MODEL} --output_dir features/photos
  ituning features info features/photos

The features of 197 tokens of width 768 take 302,592 bytes per image, or 152,084
with --storage int8. The build can be stopped at any time: the same command
resumes it, and adds images that are new in the dataset. torchrun, accelerate
launch and srun share the work among processes. An unreadable image is reported
and skipped; the next build tries it again.

Exit code: 0; 1 if the build failed, such as on a full disk; 2 for an error in
the command; 130 after Ctrl-C, 143 after SIGTERM.
"""


@dataclass
class InfoArguments(Settings):
    """The settings of `ituning features info`."""

    folder: str = option(REQUIRED, "the store's folder", FOLDER, positional=True)


def run(argv: Sequence[str]) -> int:
    """Build or describe a store, and return the exit code."""
    command = choose_command("ituning features", _COMMANDS, argv, _DESCRIPTION)
    return _build(parse_arguments(argv[1:])) if command == "build" else _describe(argv[1:])


def parse_arguments(argv: Sequence[str]) -> BuildArguments:
    """Read the settings of a build."""
    return read_settings(BuildArguments, argv, "ituning features build", _BUILD_DESCRIPTION, _BUILD_EXAMPLES)


def _build(args: BuildArguments) -> int:
    from ..captioner.backbones_ituning import Backbone
    from ..features.build import build_features, plan_build
    from ..features.store import FeatureStore
    from ..training.errors import RunStopped
    from ..training.signals import stop_on_signals
    from ..utils.distributed import command_process
    from ..utils.ranks import process_rank
    from ..utils.terminal import format_bytes

    rank = process_rank()
    share = f" (process {rank.index + 1} of {rank.count})" if rank.count > 1 else ""
    try:
        with stop_on_signals(), command_process():
            # An unusable encoder is an error before the data are read.
            Backbone("vision", args.vision_model, args.vision_revision)
            images = _load_images(args)
            plan = spec, shards = plan_build(images, args)
            count = sum(map(len, shards))
            if rank.index == 0:
                shape = f"{spec.num_tokens} x {spec.hidden_size} in {spec.storage}"
                print(f"features        {shape}, of {spec.vision_model['vision_model_name_or_path']}")
                size = format_bytes(count * spec.num_bytes)
                print(f"to encode       {count:,} of {len(images):,} images, {size}", flush=True)
            if args.dry_run:
                print("nothing was written")
                return 0
            num_encoded = build_features(images, args, rank, plan)
    except RunStopped as stopped:
        print("ituning: stopped: run the same command to resume", file=sys.stderr)
        return stopped.exit_code
    print(f"encoded         {num_encoded:,} images{share}")
    store = FeatureStore(args.output_dir)
    if store.unreadable:
        print(f"unreadable      {len(store.unreadable):,} images{share}")
    size = format_bytes(len(store) * spec.num_bytes)
    print(f"store           {store.folder}: {len(store):,} images, {size}{share}")
    return 0


def _load_images(args: BuildArguments) -> CaptionedImages:
    """Read the splits given by --splits, or the whole dataset."""
    from ..data.columns import CaptionedImages

    # Of each split as many scenes as training uses with the same flags.
    splits = args.splits or (SPLITS if args.dataset == "scenes" else ("all",))
    num_scenes = args.num_scenes if splits[0] == "train" else max(1, args.num_scenes // 10)
    parts = []
    loaded = args.load_splits(splits, args.seed, num_scenes, require_captions=False)
    for split, images in zip(splits, loaded, strict=True):
        print(f"{split:<16}{len(images):,} images")
        parts.append(images)
    return CaptionedImages.concatenate(parts)


def _describe(argv: Sequence[str]) -> int:
    args = read_settings(InfoArguments, argv, "ituning features info", "Describe a feature store.")
    from ..features.store import FeatureStore
    from ..utils.terminal import format_bytes

    store = FeatureStore(Path(args.folder))
    spec, encoder = store.spec, store.spec.vision_model
    commit = encoder["vision_model_revision"]
    revision = f" at revision {commit}" if commit else ""
    print(f"vision model    {encoder['vision_model_name_or_path']}{revision}")
    print(f"                fingerprint {encoder['vision_model_fingerprint']}")
    print(f"features        {spec.num_tokens} x {spec.hidden_size} of layer {spec.vision_feature_layer}")
    print(f"storage         {spec.storage}; computed with mixed precision {spec.mixed_precision}")
    print(f"images          {len(store):,}, {format_bytes(len(store) * store.spec.num_bytes)}")
    print(f"unreadable      {len(store.unreadable):,}")
    for reason in store.unreadable.values():
        print(f"                {reason}")
    return 0
