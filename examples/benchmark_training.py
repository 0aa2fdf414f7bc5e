"""What a training step costs, beside the floor below it and beside what people train today.

    python examples/benchmark_training.py                  # Base size: CLIP ViT-B/16, GPT-2
    python examples/benchmark_training.py --size small --no_memory    # to see that it runs
    python examples/benchmark_training.py --device cuda --dtype bfloat16 --images 64 --compile
    python examples/benchmark_training.py --growth batch --plots plots

A step zeroes the gradients, runs forward and backward, and lets AdamW step over what is trained. All ways
take the same rows of text, new ones each round and of real captions' lengths, and take turns, so that a busy
machine slows all of them: ratios are medians over rounds of the ratio within a round. Weights, pictures and
tokens are random. At Base size all ways need much memory: name some with --ways where there is little.

One picture with five captions is the default: so few rows that whatever is spent beside the frozen GPT-2
shows, and that a picture's features and the optimiser have no large batch to hide in.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.arguments import (
    DTYPES,
    add_memory_flag,
    add_ways_flag,
    benchmark_parser,
    check_ways,
    quiet,
)
from benchmarks.axes import add_growth_flags, read_growth
from benchmarks.captions import Batch
from benchmarks.growth import draw, grow, ratios
from benchmarks.memory import Memory, peak_memories
from benchmarks.peers import CROSS_ATTENTION, PEERS
from benchmarks.report import Report, Row
from benchmarks.rounds import Timings, measure
from benchmarks.storage import saved_bytes
from benchmarks.throughput import coco_minutes, count_flops, matrix_rate
from benchmarks.training_growth import AXES, GROWING_WAYS
from benchmarks.training_ways import (
    FLOOR,
    NO_OPTIMIZER,
    OWN_WAYS,
    PICTURES,
    STORED,
    UPPER_HALF,
    Step,
    StepSettings,
    way_names,
)

from ituning_hf.cli.arguments import positive

OVER_FLOOR, OVER_PEER = "over floor", "over cross-att."
PEAK_OVER_PEER, OWN_PEAK_OVER_PEER = "peak over cross-att.", "without weights, over it"
COCO_MINUTES = "COCO run, min"
TARGETS: list[tuple[str, str, str, float]] = [
    ("step from stored features, over the floor", STORED, OVER_FLOOR, 1.20),
    ("  forward and backward alone, as the floor", NO_OPTIMIZER, OVER_FLOOR, 1.20),
    ("upper half of the layers adapted, over the floor", UPPER_HALF, OVER_FLOOR, 0.95),
    (f"step from pictures, over {CROSS_ATTENTION}", PICTURES, OVER_PEER, 0.33),
    (f"step from stored features, over {CROSS_ATTENTION}", STORED, OVER_PEER, 0.18),
    (f"peak memory from pictures, over {CROSS_ATTENTION}", PICTURES, PEAK_OVER_PEER, 0.5),
    ("  the weights left out on both sides", PICTURES, OWN_PEAK_OVER_PEER, 0.5),
    (f"peak memory from stored features, over {CROSS_ATTENTION}", STORED, PEAK_OVER_PEER, 0.5),
    ("  the weights left out on both sides", STORED, OWN_PEAK_OVER_PEER, 0.5),
    ("minutes of a whole COCO run (30 epochs of 566,435 captions) on a GPU", STORED, COCO_MINUTES, 15.0),
]
TARGETS_TITLE = "targets, set for Base size and five captions an image"
STATIC_WIDTH = 32  # tokens of every row under --compile, which wants shapes that stay


def main(arguments: Sequence[str] | None = None) -> Report:
    """Measure, print, and save where that is asked for."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parse(arguments)
    report = Report.of("What a training step costs", __file__, arguments, options.device)
    with quiet():
        (grow_along if options.growth else compare)(options, report)
    report.tell(options.output)
    return report


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = benchmark_parser(__doc__, rounds=7)
    add_memory_flag(parser)
    add = parser.add_argument
    add("--images", type=positive, default=1, help="of a step (default: %(default)s)")
    add("--captions_per_image", type=positive, default=5, help="(default: %(default)s)")
    compiled = f"torch.compile, with rows of {STATIC_WIDTH} tokens; steps compile at first: --warm_up 3"
    add("--compile", action="store_true", help=compiled)
    add_ways_flag(parser, [*OWN_WAYS, *PEERS])
    add_growth_flags(parser, AXES)
    options = parser.parse_args(arguments)
    read_growth(parser, options, AXES)
    if options.ways is None:
        options.ways = [*GROWING_WAYS] if options.growth else way_names(options.size, options.dtype)
    for size in options.values if options.growth == "decoder" else [options.size]:
        check_ways(parser, options.ways, way_names(size, options.dtype))
    return options


def settings_of(options: argparse.Namespace) -> StepSettings:
    """Return what a step is taken of, by the flags."""
    return StepSettings(
        size=options.size,
        num_images=options.images,
        captions_per_image=options.captions_per_image,
        device=options.device,
        dtype=options.dtype,
        compiled=options.compile,
        width=STATIC_WIDTH if options.compile else None,
    )


def time_steps(steps: dict[str, Step], settings: StepSettings, rounds: int, warm_up: int) -> Timings:
    """Time steps in turns, all of them over the same new batch each round."""

    def renew(seed: int) -> None:
        batch = settings.batch(seed)
        for step in steps.values():
            step.batch = batch

    return measure(steps, rounds, warm_up, before_round=renew, device=settings.device)


def compare(options: argparse.Namespace, report: Report) -> None:
    """Fill a report: the ways, what they are, the arithmetic, the targets."""
    settings = settings_of(options)
    memory = peak_memories([] if options.no_memory else options.ways, Step, settings, report)
    steps = {name: Step(name, settings) for name in options.ways}
    timings = time_steps(steps, settings, options.rounds, options.warm_up)
    rows = [_time_row(name, timings) for name in steps]
    sizes = [_size_row(name, step, memory) for name, step in steps.items()]
    report.tables["time of a step"] = rows
    report.tables["what is trained, held and stored"] = sizes
    report.tables["what it is"] = [{"way": name, "model": step.way.note} for name, step in steps.items()]
    seeds = range(options.warm_up, options.warm_up + options.rounds)  # of the batches that were timed
    arithmetic = [_arithmetic(name, timings, settings, seeds) for name in (FLOOR, STORED) if name in steps]
    if arithmetic:
        report.tables["arithmetic"] = arithmetic
    if (options.size, options.captions_per_image) == ("base", 5):
        report.tables[TARGETS_TITLE] = judge([*rows, *sizes, *arithmetic])
    if options.device == "cpu":
        report.notes.append("No GPU was measured: the minutes of a whole COCO run stay empty.")


def _time_row(name: str, timings: Timings) -> Row:
    first, third = timings.quartiles(name)
    over = {OVER_FLOOR: FLOOR, OVER_PEER: CROSS_ATTENTION}
    return {
        "way": name,
        "median, s": timings.median(name),
        "25%": first,
        "75%": third,
        **{column: timings.ratio_if_measured(name, other) for column, other in over.items()},
    }


def _size_row(name: str, step: Step, memory: dict[str, Memory]) -> Row:
    trainable = sum(p.numel() for p in step.model.parameters() if p.requires_grad)
    own, peer = memory.get(name), memory.get(CROSS_ATTENTION)
    return {
        "way": name,
        "trainable": trainable,
        "peak, MB": own and own.total // 10**6,
        "without weights": own and own.own // 10**6,
        PEAK_OVER_PEER: own.total / peer.total if own and peer else None,
        OWN_PEAK_OVER_PEER: own.own / peer.own if own and peer else None,
        "checkpoint, bytes": saved_bytes(step.model).weights if trainable else None,
    }


def _arithmetic(name: str, timings: Timings, settings: StepSettings, seeds: Sequence[int]) -> Row:
    """Say what a step computes, what share of the processor's rate it reaches, and what a whole run takes."""
    on_gpu = settings.device == "cuda"
    step = Step(name, replace(settings, compiled=False))  # compiled code is not counted
    flops = statistics.median(_flops_of(step, settings.batch(seed)) for seed in seeds)
    rate = matrix_rate(settings.device, DTYPES[settings.dtype], width=8192 if on_gpu else 2048)
    seconds = timings.median(name)
    captions = settings.num_images * settings.captions_per_image
    return {
        "way": name,
        "GFLOP a step": flops / 1e9,
        "matrix product, GFLOP/s": rate / 1e9,
        "s at that rate": flops / rate,
        "its share": flops / rate / seconds,
        "captions a step": captions,
        COCO_MINUTES: coco_minutes(seconds, captions) if on_gpu else None,
    }


def _flops_of(step: Step, batch: Batch) -> int:
    step.batch = batch
    return count_flops(step)


def judge(rows: Sequence[Row]) -> list[Row]:
    """Put what was measured beside the targets; a row of any table tells of one way."""
    values = {(row["way"], column): value for row in rows for column, value in row.items()}
    return [
        {
            "what": what,
            "at most": target,
            "measured": (value := values.get((way, column))),
            "met": "not measured" if value is None else "yes" if value <= target else "no",
        }
        for what, way, column, target in TARGETS
    ]


def grow_along(options: argparse.Namespace, report: Report) -> None:
    """Fill a report with a step's seconds along an axis, and draw them where that is asked for."""
    axis = AXES[options.growth]

    def measure_at(value: Any) -> Timings:
        settings = axis.change(settings_of(options), value)
        steps = {name: Step(name, settings) for name in options.ways}
        return time_steps(steps, settings, options.rounds, options.warm_up)

    table = f"seconds of a training step, {options.size if options.growth != 'decoder' else 'by decoder'}"
    rows = report.tables[table] = grow(axis.label, options.values, measure_at)
    if FLOOR in options.ways:
        report.tables["over the floor"] = ratios(rows, FLOOR)
    if options.plots is not None:
        report.save(options.plots / f"training_{options.growth}.json")
        draw(report, table, options.plots / f"training_{options.growth}.svg")


if __name__ == "__main__":
    main()
