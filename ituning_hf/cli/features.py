"""`ituning features`: what the frozen vision encoder makes of images, computed once and stored."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import natural, positive

if TYPE_CHECKING:
    from ..data import CaptionedImage
    from ..features import BuildPlan, BuildResult

_EXAMPLES = """\
examples:
  ituning features build --dataset photos/ --vision-model openai/clip-vit-base-patch16 --output-dir features/
  ituning features info features/

An image of CLIP ViT-B/16 takes 302,592 bytes, or 152,084 with --storage int8. The build can be ended at any
time: the same command goes on, and adds what is new in the data set. A picture that cannot be read is named
and left out, and tried again once its file is another one.

Exit code: 0; 1 if it failed on its way, such as on a full disk; 2 for a mistake in the command; 130 after
Ctrl-C, 143 after SIGTERM.
"""


def add_parser(commands: Any) -> None:
    """Add the command to those of `ituning`."""
    parser = commands.add_parser(
        "features",
        help="store the vision encoder's features of a data set",
        description="Store what the frozen vision encoder makes of a data set's images, so that each is "
        "encoded only once.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    build = actions.add_parser(
        "build",
        help="compute features and store them, or go on with that",
        description="Compute the features of a data set's images and store them. What the store has already "
        "is left out.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_data(build.add_argument)
    _add_encoder(build.add_argument)
    build.set_defaults(run=run_build, parser=build)
    info = actions.add_parser("info", help="say what a store holds", description="Say what a store holds.")
    info.add_argument("folder", type=Path, metavar="FOLDER", help="the store's folder")
    info.set_defaults(run=run_info, parser=info)


def _add_data(add: Any) -> None:
    add("--dataset", required=True, help="as for ituning train")
    add("--image-root", metavar="FOLDER", help="the folder that file names in the data set are relative to")
    add("--image-column", metavar="NAME", help="the column of images in a table")
    add("--caption-column", metavar="NAME", help="the column of captions in a table")
    add("--val-share", type=float, default=0.1, metavar="SHARE", help="as for ituning train (%(default)s)")
    add(
        "--num-scenes",
        type=positive,
        default=2000,
        metavar="N",
        help="of `scenes`, to train on (%(default)s)",
    )
    add("--seed", type=natural, default=0, help="as for ituning train (%(default)s)")
    add(
        "--splits",
        nargs="+",
        choices=("train", "val", "test"),
        metavar="SPLIT",
        help="some of train, val and test (all that the data set has)",
    )


def _add_encoder(add: Any) -> None:
    add("--vision-model", required=True, help="the vision encoder's or a whole CLIP's folder or Hub id")
    add("--vision-revision", help="its revision on the Hub")
    add(
        "--vision-feature-layer",
        type=int,
        default=-1,
        metavar="N",
        help="which hidden state is taken: -1 the last layer's output, 0 the embeddings' (%(default)s)",
    )
    add("--output-dir", type=Path, required=True, metavar="FOLDER", help="the store's folder")
    add(
        "--storage",
        default="bfloat16",
        choices=("bfloat16", "int8", "float32"),
        help="the form of the numbers; int8 has a scale for each token (%(default)s)",
    )
    add(
        "--mixed-precision",
        default="no",
        choices=("no", "bf16", "fp16"),
        help="what the encoder computes in; no is the precision of its weights (%(default)s)",
    )
    add("--batch-size", type=positive, default=32, metavar="N", help="images encoded at a time (%(default)s)")
    add(
        "--shard-size",
        type=positive,
        default=500,
        metavar="N",
        help="images of a file; the features of one file are held in memory, 151 MB of ViT-B/16 in bfloat16 "
        "(%(default)s)",
    )
    add(
        "--dataloader-num-workers",
        type=natural,
        default=2,
        metavar="N",
        help="processes that decode pictures; 0 decodes where it encodes (%(default)s)",
    )
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps; auto takes the best (%(default)s)")
    add("--dry-run", action="store_true", help="say what would be done and whether it fits; write nothing")


def run_build(options: argparse.Namespace) -> int:
    """Build the store, and return the exit code."""
    from ..training.errors import RunStopped
    from ..training.signals import stop_on_signals

    try:
        with stop_on_signals():
            _build(options, _load_records(options))
    except RunStopped as stopped:
        print("ituning: stopped: the same command goes on from here", file=sys.stderr)
        return stopped.exit_code
    return 0


_SPEC = ("vision_model", "vision_revision", "vision_feature_layer", "storage", "mixed_precision")


def _build(options: argparse.Namespace, records: list[CaptionedImage]) -> None:
    from ..features import FeatureStore, build_features, describe_encoder, plan_build

    spec = {name: getattr(options, name) for name in _SPEC}
    if options.dry_run:
        plan = plan_build(records, options.output_dir, describe_encoder(**spec), options.shard_size)
        _print_plan(plan)
        plan.require_space()
        print("nothing was written")
        return
    result = build_features(
        records,
        options.output_dir,
        **spec,
        batch_size=options.batch_size,
        shard_size=options.shard_size,
        num_workers=options.dataloader_num_workers,
        device=None if options.device == "auto" else options.device,
        on_plan=_print_plan,
        progress=sys.stderr.isatty(),
    )
    _print_result(result, FeatureStore(options.output_dir))


def run_info(options: argparse.Namespace) -> int:
    """Print what a store holds, and return the exit code."""
    from ..features import FeatureStore, format_bytes

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


def _load_records(options: argparse.Namespace) -> list[CaptionedImage]:
    """Read the splits: those that are asked for, or all that the data set has."""
    from ..data import MissingSplitError, load_captioned_images

    records: list[CaptionedImage] = []
    missing: list[MissingSplitError] = []
    for split in options.splits or ("train", "val", "test"):
        # As many scenes as training takes by the same flags.
        num_scenes = options.num_scenes if split == "train" else max(1, options.num_scenes // 10)
        try:
            found = load_captioned_images(
                options.dataset,
                split,
                image_root=options.image_root,
                seed=options.seed,
                num_scenes=num_scenes,
                image_column=options.image_column,
                caption_column=options.caption_column,
                val_share=options.val_share,
                require_captions=False,
            )
        except MissingSplitError as error:
            if options.splits:
                raise
            missing.append(error)
            continue
        print(f"{split:<16}{len(found):,} images")
        records += found
    if not records:
        raise missing[0]
    return records


def _print_plan(plan: BuildPlan) -> None:
    from ..features import format_bytes

    spec = plan.spec
    print(f"features        {spec.num_tokens} x {spec.hidden_size} in {spec.storage}, of", end=" ")
    print(f"{spec.vision_model_name_or_path}")
    print(f"to encode       {plan.num_images:,} images; {plan.present:,} are in the store")
    print(f"on disk         {format_bytes(plan.num_bytes)} more; {format_bytes(plan.free_bytes)} are free")
    sys.stdout.flush()


def _print_result(result: BuildResult, store: Any) -> None:
    from ..features import format_bytes

    if result.encoded:
        speed = result.encoded / result.seconds
        print(f"encoded         {result.encoded:,} images, {speed:.1f} a second; ", end="")
        print(f"{format_bytes(result.num_bytes)} written")
    if result.unreadable:
        print(f"unreadable      {len(result.unreadable):,} images, named above")
    print(f"store           {store.folder}: {len(store.names):,} images, {format_bytes(store.num_bytes)}")
