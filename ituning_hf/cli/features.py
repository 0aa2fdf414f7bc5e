"""`ituning features`: what the frozen vision encoder makes of images, computed once and stored."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..data.records import CaptionedImage
    from ..features.arguments import BuildArguments
    from ..features.build import BuildResult
    from ..features.plan import BuildPlan


def add_parser(commands: Any) -> None:
    """Add the command to those of `ituning`."""
    parser = commands.add_parser(
        "features",
        help="store the vision encoder's features of a data set",
        description="Store what the frozen vision encoder makes of a data set's images, so that each is "
        "encoded only once.",
    )
    actions = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    actions.add_parser(
        "build",
        help="compute features and store them, or go on with that (ituning features build --help shows its "
        "options)",
    )
    info = actions.add_parser("info", help="say what a store holds", description="Say what a store holds.")
    info.add_argument("folder", type=Path, metavar="FOLDER", help="the store's folder")
    info.set_defaults(run=run_info, parser=info)


def run_build(arguments: Sequence[str]) -> int:
    """Build the store as the command's own arguments say, and return the exit code."""
    from ..features.arguments import parse_arguments
    from ..training.errors import RunStopped
    from ..training.signals import stop_on_signals
    from ..utils.distributed import command_process

    args = parse_arguments(arguments)
    try:
        with stop_on_signals(), command_process():
            _build(args, _load_records(args))
    except RunStopped as stopped:
        print("ituning: stopped: the same command goes on from here", file=sys.stderr)
        return stopped.exit_code
    return 0


_SPEC = ("vision_model", "vision_revision", "vision_feature_layer", "storage", "mixed_precision")


def _build(args: BuildArguments, records: list[CaptionedImage]) -> None:
    from ..features.build import build_features
    from ..features.encoder import describe_encoder
    from ..features.plan import plan_build
    from ..features.store import FeatureStore

    spec: dict[str, Any] = {name: getattr(args, name) for name in _SPEC}
    if args.dry_run:
        plan = plan_build(records, args.output_dir, describe_encoder(**spec), args.shard_size)
        _print_plan(plan)
        plan.require_space()
        print("nothing was written")
        return
    result = build_features(
        records,
        args.output_dir,
        **spec,
        batch_size=args.batch_size,
        shard_size=args.shard_size,
        num_workers=args.dataloader_num_workers,
        device=None if args.device == "auto" else args.device,
        on_plan=_print_plan,
        progress=sys.stderr.isatty(),
    )
    _print_result(result, FeatureStore(args.output_dir))


def run_info(options: argparse.Namespace) -> int:
    """Print what a store holds, and return the exit code."""
    from ..features.plan import format_bytes
    from ..features.store import FeatureStore

    store = FeatureStore(options.folder)
    spec = store.spec
    revision = f" at revision {spec.vision_model_revision}" if spec.vision_model_revision else ""
    print(f"vision model    {spec.vision_model_name_or_path}{revision}")
    print(f"                fingerprint {spec.vision_model_fingerprint}")
    print(f"features        {spec.num_tokens} x {spec.hidden_size} of layer {spec.vision_feature_layer}")
    print(f"storage         {spec.storage}; computed with mixed precision {spec.mixed_precision}")
    print(f"images          {len(store.names):,}, {format_bytes(store.num_bytes)}")
    print(f"unreadable      {len(store.unreadable):,}")
    for reason in store.unreadable.values():
        print(f"                {reason}")
    return 0


def _load_records(args: BuildArguments) -> list[CaptionedImage]:
    """Read the splits: those that are asked for, or all that the data set has."""
    from ..data.records import MissingSplitError
    from ..features.arguments import SPLITS

    records: list[CaptionedImage] = []
    missing: list[MissingSplitError] = []
    for split in args.splits or SPLITS:
        # As many scenes as training takes by the same flags.
        num_scenes = args.num_scenes if split == "train" else max(1, args.num_scenes // 10)
        try:
            found = args.load_split(split, args.seed, num_scenes, require_captions=False)
        except MissingSplitError as error:
            if args.splits:
                raise
            missing.append(error)
            continue
        print(f"{split:<16}{len(found):,} images")
        records += found
    if not records:
        raise missing[0]
    return records


def _print_plan(plan: BuildPlan) -> None:
    from ..features.plan import format_bytes

    spec = plan.spec
    print(f"features        {spec.num_tokens} x {spec.hidden_size} in {spec.storage}, of", end=" ")
    print(f"{spec.vision_model_name_or_path}")
    print(f"to encode       {plan.num_images:,} images; {plan.present:,} are in the store")
    print(f"on disk         {format_bytes(plan.num_bytes)} more; {format_bytes(plan.free_bytes)} are free")
    sys.stdout.flush()


def _print_result(result: BuildResult, store: Any) -> None:
    from ..features.plan import format_bytes

    if result.encoded:
        speed = result.encoded / result.seconds
        print(f"encoded         {result.encoded:,} images, {speed:.1f} a second; ", end="")
        print(f"{format_bytes(result.num_bytes)} written")
    if result.unreadable:
        print(f"unreadable      {len(result.unreadable):,} images, named above")
    print(f"store           {store.folder}: {len(store.names):,} images, {format_bytes(store.num_bytes)}")
