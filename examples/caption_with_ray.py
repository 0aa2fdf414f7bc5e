r"""Caption a folder of images, Parquet files or tar shards with Ray Data, and write Parquet files.

    python examples/caption_with_ray.py photos/ --model outputs/mine/best --output outputs/captions
    python examples/caption_with_ray.py images/*.parquet --id_column url --model me/mine --output s3://me/captions
    python examples/caption_with_ray.py shards/{000..099}.tar --id_column __key__ --model me/mine \
        --output outputs/captions

It starts Ray on this machine, or uses the cluster that the environment variable RAY_ADDRESS names (see
docs/scale.md). The same command resumes, and captions new images. Requires `pip install 'ituning_hf[ray]'`.
"""

import argparse
import os
import re
from pathlib import Path
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.data.block import BlockAccessor
from ray.data.checkpoint import CheckpointConfig, NumpyArrayBasedCheckpointFilter

from ituning_hf import CaptionBatch
from ituning_hf.data.images import IMAGE_SUFFIXES

SUFFIXES = [suffix.removeprefix(".") for suffix in sorted(IMAGE_SUFFIXES)]
IMAGE_NAME = re.compile(rf"\.({'|'.join(SUFFIXES)})$", re.IGNORECASE)


def read(inputs: list[str], image_column: str, id_column: str) -> Dataset:
    """Read images, without decoding them, and their ids."""
    if inputs[0].endswith(".parquet"):
        return ray.data.read_parquet(inputs, columns=[id_column, image_column])
    if inputs[0].endswith(".tar"):
        return ray.data.read_webdataset(
            inputs,
            decoder=None,
            filerename=lambda name: IMAGE_NAME.sub(f".{image_column}", name),
            fileselect=[f"*.{image_column}"],
        )
    files = ray.data.read_binary_files(inputs, include_paths=True, file_extensions=SUFFIXES)
    return files.rename_columns({"bytes": image_column})


class RemainingRows(NumpyArrayBasedCheckpointFilter):
    """Leaves out rows that are in the output; Ray's own filter fails at the data frames of tar shards."""

    def filter_rows_for_block(self, block: Any) -> Any:
        """Return the rows of a block that are not captioned yet."""
        return super().filter_rows_for_block(BlockAccessor.for_block(block).to_arrow())


def absolute(path: str) -> str:
    """Make a local path absolute: Ray's workers run in other folders."""
    return path if "://" in path else os.path.abspath(path)


def main(argv: list[str] | None = None) -> None:
    """Caption what is not captioned yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", nargs="+", help="folders of images, .parquet files or .tar shards")
    parser.add_argument("--model", required=True, help="the captioner's folder or Hub id")
    parser.add_argument("--output", required=True, help="folder: Parquet files in captions/, and progress/")
    parser.add_argument("--image_column", default="image", help="column of bytes or paths in Parquet files")
    parser.add_argument(
        "--id_column", default="path", help="column that identifies an image; __key__ in shards"
    )
    parser.add_argument("--num_workers", type=int, help="captioners; by default one for each GPU, or one")
    parser.add_argument("--batch_size", type=int, default=16, help="images in a batch of a captioner")
    parser.add_argument("--num_beams", type=int, default=5)
    parser.add_argument("--max_new_tokens", type=int, default=20)
    args = parser.parse_args(argv)
    if not ray.is_initialized():
        ray.init()
    num_cpus, num_gpus = (int(ray.cluster_resources().get(name, 0)) for name in ("CPU", "GPU"))
    num_workers = args.num_workers or max(1, num_gpus)
    if num_cpus < num_workers + 2:  # Ray Data would wait for ever
        raise SystemExit(
            f"Ray has {num_cpus} CPUs, and {num_workers} captioners need {num_workers + 2}, two to read "
            "and write: set a lower --num_workers, or start Ray with `ray start --head --num-cpus N`."
        )
    DataContext.get_current().checkpoint_config = CheckpointConfig(
        id_column=args.id_column,
        checkpoint_path=f"{absolute(args.output)}/progress",
        delete_checkpoint_on_success=False,  # so that the same command finds new images later
        checkpoint_filter_cls=RemainingRows,
    )
    model = absolute(args.model) if Path(args.model).exists() else args.model
    options = {
        name: getattr(args, name) for name in ("image_column", "batch_size", "num_beams", "max_new_tokens")
    }
    images = read([*map(absolute, args.input)], args.image_column, args.id_column)
    captioned = images.map_batches(
        CaptionBatch,
        fn_constructor_args=(model,),
        fn_constructor_kwargs=options,
        compute=ActorPoolStrategy(size=num_workers),
        num_gpus=min(1, num_gpus),
        batch_size=4 * args.batch_size,
    )
    captioned.select_columns([args.id_column, "caption", "caption_error"]).write_parquet(
        f"{absolute(args.output)}/captions"
    )


if __name__ == "__main__":
    main()
