"""What is stored of a captioner, and how long it takes to load, beside what people load today.

    python examples/benchmark_loading.py                  # Base size: CLIP ViT-B/16, GPT-2
    python examples/benchmark_loading.py --size small     # seconds, to see that it runs
    python examples/benchmark_loading.py --dtype bfloat16

Every model has random weights, nothing being downloaded, and is saved by its own `save_pretrained`; what is
counted is what is on disk then. Loading is timed beside reading the same bytes and doing nothing with them,
with the files in the system's page cache, and with none of their pages there, which is looked up before each.
All take turns, so that a busy machine slows all of them.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.arguments import DTYPES, benchmark_parser, quiet, writable_folder
from benchmarks.loading_ways import CAPTIONER, ONTO_BACKBONES, SWITCH, Load, SavedModels, loading_ways
from benchmarks.page_cache import can_drop, drop_from_cache
from benchmarks.report import Report, Row
from benchmarks.rounds import Timings, measure
from benchmarks.storage import Saved

SECONDS = 0.1  # at most, for an adapter onto models that are in memory


def main(arguments: Sequence[str] | None = None) -> Report:
    """Measure, print, and save where that is asked for."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parse(arguments)
    report = Report.of(
        "What is stored of a captioner, and how long it takes to load", __file__, arguments, options.device
    )
    with quiet(), tempfile.TemporaryDirectory(dir=options.folder) as folder:
        compare(options, Path(folder), report)
    report.tell(options.output)
    return report


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = benchmark_parser(__doc__, rounds=7)
    help = "where models are saved and removed again: a disk (the temporary folder)"
    parser.add_argument("--folder", type=writable_folder, help=help)
    return parser.parse_args(arguments)


def compare(options: argparse.Namespace, folder: Path, report: Report) -> None:
    """Fill a report: bytes, seconds, the targets."""
    models = SavedModels(folder, options.size, DTYPES[options.dtype], options.device)
    report.tables[f"on disk, in {options.dtype}"] = size_rows(models.saved)
    ways = loading_ways(models)
    warm = measure(
        {name: way.call for name, way in ways.items()}, options.rounds, options.warm_up, device=options.device
    )
    cold = None
    if can_drop(folder):
        cold = measure_cold(ways, options.rounds, options.device)
    else:
        report.notes.append("Nothing was read cold: files stay in memory here; give a --folder on a disk.")
    report.tables["seconds to load"] = [_row(name, way, warm, cold) for name, way in ways.items()]
    if options.size == "base":
        report.tables["targets"] = target_rows(warm)


def size_rows(saved: dict[str, Saved]) -> list[Row]:
    """Return what each model left on disk, and how many times the captioner's that is."""
    ours = saved[CAPTIONER]
    return [
        {
            "model": name,
            "weights, bytes": sizes.weights,
            "folder, bytes": sizes.folder,
            "weights / I-Tuning": sizes.weights / ours.weights,
            "folder / I-Tuning": sizes.folder / ours.folder,
        }
        for name, sizes in saved.items()
    ]


def measure_cold(ways: dict[str, Load], rounds: int, device: str) -> Timings:
    """Time each way once a round with none of its files in the page cache."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            gc.collect()  # a model loaded before may map its file, whose pages then stay
            drop_from_cache(way.files)
            once = measure({name: way.call}, rounds=1, warm_up=0, device=device)
            seconds[name] += once.seconds[name]
    return Timings(seconds)


def _row(name: str, way: Load, warm: Timings, cold: Timings | None) -> Row:
    first, third = warm.quartiles(name)
    return {
        "way": name,
        "MB read": sum(path.stat().st_size for path in way.files) / 1e6,
        "median s": warm.median(name),
        "25%": first,
        "75%": third,
        "over reading": warm.ratio(name, way.floor),
        "cold s": cold and cold.median(name),
        "over reading cold": cold and cold.ratio(name, way.floor),
    }


def target_rows(warm: Timings) -> list[Row]:
    """Return what was aimed for beside what was measured."""
    return [
        {
            "target": name,
            "seconds, at most": SECONDS,
            "measured": (taken := warm.median(name)),
            "met": "yes" if taken <= SECONDS else "no",
        }
        for name in (ONTO_BACKBONES, SWITCH)
    ]


if __name__ == "__main__":
    main()
