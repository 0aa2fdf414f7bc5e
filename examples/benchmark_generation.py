"""What generating captions costs, beside bare GPT-2 and beside what people generate them with today.

    python examples/benchmark_generation.py                  # Base size: CLIP ViT-B/16, GPT-2
    python examples/benchmark_generation.py --size small --no_memory    # to see that it runs
    python examples/benchmark_generation.py --device cuda --dtype bfloat16 --images 16 --compile
    python examples/benchmark_generation.py --profile        # where the time goes
    python examples/benchmark_generation.py --growth beams --plots plots

Every way generates the same number of tokens, with the same beams, for the same pictures; they take turns, so
that a busy machine slows all of them: ratios are medians over rounds of the ratio within a round. Weights are
random. The captioner and the PEFT method have the same ones, and must give the same captions. "each step" is
the PEFT model's language model called directly, which projects the images' keys and values again for every
token. Peak memory holds the vision encoder also where it only made the features, before the call.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.arguments import add_memory_flag, add_ways_flag, benchmark_parser, check_ways, quiet
from benchmarks.axes import add_growth_flags, read_growth
from benchmarks.captions import MOST_TOKENS
from benchmarks.generation_growth import AXES, GROWING_WAYS
from benchmarks.generation_profile import profile_tables
from benchmarks.generation_ways import (
    ALL_WAYS,
    ENCODER_DECODER,
    FEATURES,
    FLOOR,
    IN_BF16,
    IN_INT8,
    PEFT,
    PICTURES,
    CaptionSettings,
    build_way,
    build_ways,
    count_changed,
    way_names,
)
from benchmarks.growth import draw, grow, ratios
from benchmarks.memory import Memory, peak_memories
from benchmarks.report import Report, Row
from benchmarks.rounds import Timings, measure

from ituning_hf.cli.arguments import positive

# What is compared, over what, and at most by which factor.
TARGETS = (
    ("beam-5 generation, image encoding excluded, over bare GPT-2", FEATURES, FLOOR, 1.05),
    ("beam-5 generation with image encoding, over VisionEncoderDecoder", PICTURES, ENCODER_DECODER, 0.60),
    ("beam-5 generation through the PEFT method, over the captioner's", PEFT, FEATURES, 1.1),
    ("beam-5 generation with the language model in int8, over bare GPT-2 in fp32", IN_INT8, FLOOR, 0.5),
    ("beam-5 generation with frozen weights in bf16, over bare GPT-2 in fp32", IN_BF16, FLOOR, 0.5),
)


def main(arguments: Sequence[str] | None = None) -> Report:
    """Measure, print, and save where that is asked for."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parse(arguments)
    report = Report.of("What generating captions costs", __file__, arguments, options.device)
    with quiet():
        if options.profile:
            report.tables |= profile_tables(options.ways, settings_of(options))
        elif options.growth:
            grow_along(options, report)
        else:
            compare(options, report)
    report.tell(options.output)
    return report


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = benchmark_parser(__doc__, rounds=7)
    add_memory_flag(parser)
    add = parser.add_argument
    add("--images", type=positive, default=2, help="captioned at once (default: %(default)s)")
    add("--num_beams", type=positive, default=5, help="(default: %(default)s)")
    add("--new_tokens", type=positive, default=20, help="of each caption (default: %(default)s)")
    add("--compile", action="store_true", help="also greedily over a static cache, each step compiled")
    add("--profile", action="store_true", help="print where the time goes, in place of the times")
    add_ways_flag(parser, [*ALL_WAYS])
    add_growth_flags(parser, AXES)
    options = parser.parse_args(arguments)
    if options.profile and options.growth:
        parser.error("--profile and --growth are tables of their own: give one.")
    if options.compile and (options.ways or options.profile or options.growth):
        parser.error("--compile adds to all ways: with --profile, --growth or --ways, name them by --ways.")
    if options.new_tokens > MOST_TOKENS:
        parser.error(
            f"--new_tokens {options.new_tokens}: not every decoder has places for over {MOST_TOKENS}."
        )
    read_growth(parser, options, AXES)
    settings = settings_of(options)
    if options.ways is None and (options.growth or options.profile):
        options.ways = [*GROWING_WAYS]
    elif options.ways is None:
        options.ways = way_names(settings, options.compile)
    for size in options.values if options.growth == "decoder" else [options.size]:
        check_ways(parser, options.ways, way_names(replace(settings, size=size), compiled=True))
    return options


def settings_of(options: argparse.Namespace) -> CaptionSettings:
    """Return what is captioned, by the flags."""
    return CaptionSettings(
        size=options.size,
        num_images=options.images,
        num_beams=options.num_beams,
        new_tokens=options.new_tokens,
        device=options.device,
        dtype=options.dtype,
    )


def compare(options: argparse.Namespace, report: Report) -> None:
    """Fill a report: the ways, what they are, the targets."""
    settings = settings_of(options)
    names = [] if options.no_memory else options.ways
    memory = peak_memories(names, build_way, settings, report, calls=1)
    ways = build_ways(options.ways, settings)
    changed = count_changed(ways, settings)
    timings = measure(ways, options.rounds, options.warm_up, device=options.device)
    rows = [_row(name, settings, timings, memory.get(name), changed.get(name)) for name in ways]
    report.tables[_title(settings)] = rows
    report.tables["what it is"] = [{"way": name, "": ALL_WAYS[name].note} for name in ways]
    if (settings.size, settings.num_beams, settings.new_tokens) == ("base", 5, 20):
        report.tables["targets"] = target_rows(timings)


def grow_along(options: argparse.Namespace, report: Report) -> None:
    """Fill a report with a call's seconds along an axis, and draw them where that is asked for."""

    def measure_at(value: Any) -> Timings:
        ways = build_ways(options.ways, AXES[options.growth].change(settings_of(options), value))
        return measure(ways, options.rounds, options.warm_up, device=options.device)

    table = f"seconds to caption, {'by decoder' if options.growth == 'decoder' else options.size}"
    rows = report.tables[table] = grow(AXES[options.growth].label, options.values, measure_at)
    if FLOOR in options.ways:
        report.tables["over bare GPT-2"] = ratios(rows, FLOOR)
    if options.plots is not None:
        report.save(options.plots / f"generation_{options.growth}.json")
        draw(report, table, options.plots / f"generation_{options.growth}.svg")


def _title(settings: CaptionSettings) -> str:
    tokens, images, beams = settings.new_tokens, settings.num_images, settings.num_beams
    return f"{tokens} tokens for {images} pictures, {beams} beams unless greedy"


def _row(
    name: str, settings: CaptionSettings, timings: Timings, memory: Memory | None, changed: int | None
) -> Row:
    median = timings.median(name)
    first, third = timings.quartiles(name)
    return {
        "way": name,
        "median s": median,
        "25%": first,
        "75%": third,
        "over floor": timings.ratio_if_measured(name, ALL_WAYS[name].floor),
        "over enc.-dec.": timings.ratio_if_measured(name, ENCODER_DECODER),
        "ms a token": 1000 * median / settings.new_tokens,
        "images/s": settings.num_images / median,
        "peak MB": memory and memory.total // 10**6,
        "of it the call": memory and memory.own // 10**6,
        "captions changed": changed,
    }


def target_rows(timings: Timings) -> list[Row]:
    """Return what was aimed for beside what was measured; empty where that was not run."""
    rows = []
    for what, way, over, wanted in TARGETS:
        ratio = timings.ratio_if_measured(way, over)
        met = None if ratio is None else "yes" if ratio <= wanted else "no"
        rows.append({"target": what, "at most": wanted, "measured": ratio, "met": met})
    return rows


if __name__ == "__main__":
    main()
