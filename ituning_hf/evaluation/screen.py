"""What an evaluation shows on the screen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import shorten
from typing import Any

from ..hub.evaluation_results import METRIC_NAMES, unreadable_note
from ..utils.terminal import printable
from .finished import FinishedReport
from .images import BenchmarkImages
from .report import Evaluation, scoring_of
from .scoring import CONFIDENCE, Part

NUM_SAMPLES = 3  # of the best captions, and of the worst
MAX_REFERENCES = 5
SHOWN_CHARACTERS = 100


def describe_evaluation(evaluation: Evaluation) -> list[str]:
    """Say what came of an evaluation, a line each: scores, captions, speed."""
    lines = _heading(evaluation.benchmark, len(evaluation.places))
    if evaluation.scores is not None:
        lines += ["", *score_table(evaluation.parts), *_how_scored(scoring_of(evaluation.scores))]
        lines += ["", *_samples(evaluation)]
    if evaluation.speed is not None:
        lines += ["", *_speed(evaluation)]
    return lines


def describe_finished(benchmark: BenchmarkImages, finished: FinishedReport) -> list[str]:
    """Say again what came of an evaluation, a line each: its scores."""
    lines = _heading(benchmark, finished.num_captioned)
    if finished.scoring is not None:
        lines += ["", *score_table(finished.parts), *_how_scored(finished.scoring)]
    return lines


def _heading(benchmark: BenchmarkImages, num_captioned: int) -> list[str]:
    note = unreadable_note(benchmark.count_unreadable(None, num_captioned))
    return [f"{benchmark.dataset}, {benchmark.split}: {num_captioned:,} images", *([note] if note else [])]


def score_table(parts: Sequence[Part]) -> list[str]:
    """Lay out scores times 100: a row for each metric, a column for each domain, the interval of the last.

    Args:
        parts: The scores of the domains, if any, and of all images.
    """
    entire = parts[-1]
    names = [name for name in METRIC_NAMES if name in entire.metrics]
    heads = [part.name for part in parts] if len(parts) > 1 else ["score"]
    rows = [["", *heads, f"{CONFIDENCE:.0%} interval"]]
    if len(parts) > 1:
        rows.append(["images", *(f"{part.num_images:,}" for part in parts), ""])
    for name in names:
        low, high = entire.intervals[name]
        scores = [f"{100 * part.metrics[name]:.1f}" for part in parts]
        rows.append([METRIC_NAMES[name], *scores, f"{100 * low:.1f} to {100 * high:.1f}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    ]


def _how_scored(scoring: dict[str, Any]) -> list[str]:
    java = f" {scoring['java_version']})" if scoring["java_version"] is not None else ""
    return [
        "Scores x 100, as papers print them; metrics.json has them as they are, 0 to 1 and CIDEr 0 to 10.",
        f"Tokenizer: {scoring['tokenizer'].removesuffix(')')}{java}.",
        *scoring["left_out"].values(),
    ]


def _samples(evaluation: Evaluation) -> Iterator[str]:
    """Show the captions of highest and of lowest CIDEr with what people wrote, none of them twice."""
    assert evaluation.scores is not None
    cider = evaluation.scores.per_image["cider"]
    ranked = sorted(range(len(cider)), key=lambda i: -cider[i])
    best = ranked[: min(NUM_SAMPLES, (len(ranked) + 1) // 2)]
    worst = ranked[max(len(best), len(ranked) - NUM_SAMPLES) :]
    for title, chosen in (("Best", best), ("Worst", worst[::-1])):
        if chosen:
            yield f"{title} captions by CIDEr, and what people wrote:"
        for i in chosen:
            image = evaluation.images[i]
            yield f"{100 * cider[i]:8.1f}  {printable(image.name)}: {_short(evaluation.captions[i])}"
            yield from (f"{'':10}- {_short(text)}" for text in image.captions[:MAX_REFERENCES])


def _speed(evaluation: Evaluation) -> list[str]:
    speed = evaluation.speed
    assert speed is not None
    several = f", {speed.num_processes} processes" if speed.num_processes > 1 else ""
    median = f"; the median batch of {speed.batch_size} took {speed.seconds_of_median_batch:.3g} s"
    return [
        f"Speed      {speed.captions_per_second:.3g} captions/s on {speed.device}{several}, without reading "
        f"images{median if speed.num_batches > 1 else ''}"
    ]


def _short(text: str) -> str:
    shown = "".join(letter if letter.isprintable() else " " for letter in text)  # a terminal obeys the others
    return shorten(shown, SHOWN_CHARACTERS, placeholder=" ...") or "(an empty caption)"
