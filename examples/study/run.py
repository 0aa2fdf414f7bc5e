"""Run the cells of the study that have no result yet, several at a time.

    python -m examples.study.run --dataset data/flickr8k/dataset_flickr8k.json \
        --vision_model VISION --text_model TEXT                     # the whole study
    python -m examples.study.run ... --cells 'rate-*' table-flamingo-0      # some of its cells
    python -m examples.study.run ... --dry_run                      # list the cells without a result

Each cell is trained and scored in a process of its own with one thread; its result is a JSON file in
`results/`. The command can be stopped and started again: finished cells are not repeated. To repeat a cell,
delete its file. `report.py` makes the tables and plots.

Requires `pip install 'ituning_hf[eval]'`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ituning_hf.data import CaptionedImages, load_captioned_images
from ituning_hf.features import build_features
from ituning_hf.features.arguments import BuildArguments
from ituning_hf.utils.files import write_json

from .cells import GROUPS, Cell, Results

RESULTS = Path(__file__).parent / "results"


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that all commands of the study have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", required=True, help="Flickr8k in Karpathy's format")
    parser.add_argument("--results", type=Path, default=RESULTS, help="(default: %(default)s)")
    return parser


def load_results(folder: Path) -> Results:
    """Read the results by the names of their cells."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def run_cell(name: str, cell: Cell, options: argparse.Namespace, features: str) -> str:
    """Train and score a cell, write its result, and return a line about it."""
    from . import training  # imports torch, with the number of threads that the main process has set

    result = training.run_cell(cell, options.dataset, features, options.text_model)
    write_json(options.results / f"{name}.json", result)
    shown = ", ".join(f"{metric} {result['metrics'][metric]:.3f}" for metric in ("loss", "cider", "bleu_4"))
    return f"{name}: {shown}, {result['cpu_seconds_training']:.0f} CPU s"


def store_features(layer: int, options: argparse.Namespace) -> str:
    """Store the encoder's hidden state of a layer for all images, unless it is stored already."""
    folder = str(options.features / f"layer{layer}")
    settings = {"vision_model": options.vision_model, "vision_feature_layer": layer, "output_dir": folder}
    images = [load_captioned_images(options.dataset, split) for split in ("train", "val")]
    build_features(CaptionedImages.concatenate(images), BuildArguments(dataset=options.dataset, **settings))
    return folder


def run_group(cells: dict[str, Cell], options: argparse.Namespace) -> None:
    """Run cells, `options.processes` at a time, and print a line for each."""
    layers = {cell.vision_feature_layer for cell in cells.values()}
    features = {layer: store_features(layer, options) for layer in sorted(layers)}
    spawned = multiprocessing.get_context("spawn")
    # A new process for each cell, so that its peak memory is its own.
    with ProcessPoolExecutor(options.processes, spawned, max_tasks_per_child=1) as pool:
        running = [
            pool.submit(run_cell, name, cell, options, features[cell.vision_feature_layer])
            for name, cell in cells.items()
        ]
        for future in as_completed(running):
            print(future.result(), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the cells that are chosen and have no result."""
    options = parse(arguments)
    options.results.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the spawned processes; two with one thread are the fastest
    for group in GROUPS:
        cells = group(results := load_results(options.results))
        missing = {
            name: cell
            for name, cell in cells.items()
            if name not in results and any(fnmatch(name, pattern) for pattern in options.cells)
        }
        print(f"{group.__name__}: {len(missing)} of {len(cells)} to run", *missing, sep="\n  ", flush=True)
        if missing and not options.dry_run:
            run_group(missing, options)


def parse(arguments: Sequence[str] | None) -> Any:
    """Parse the command line."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--vision_model", required=True, help="frozen vision encoder")
    add("--text_model", required=True, help="frozen language model")
    add("--features", type=Path, default=Path("outputs/study_features"), help="(default: %(default)s)")
    add("--cells", nargs="+", default=["*"], metavar="PATTERN", help="names of cells (default: all)")
    add("--processes", type=int, default=os.cpu_count(), help="(default: one for each core)")
    add("--dry_run", action="store_true", help="list the cells without a result, run none")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
