"""An evaluation's scores beside the captioner: `evaluation.json`, and the model card that shows it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..hub.evaluation_results import (
    EVALUATION_FILE,
    METRIC_NAMES,
    EvaluationResult,
    read_evaluations,
    write_evaluations,
)
from ..hub.writing import write_card
from .arguments import EvaluateArguments
from .command import command_of
from .images import BenchmarkImages
from .scoring import ENTIRE, Part


def card_folder(args: EvaluateArguments) -> Path | None:
    """Return the folder whose card is to show the scores; None for a captioner on the Hub, or none at all."""
    if args.no_card or args.model is None or not Path(args.model).is_dir():
        return None
    return Path(args.model)


def check_card(args: EvaluateArguments, benchmark: BenchmarkImages) -> None:
    """Make sure, before long work, that the scores can go on the captioner's card.

    Raises:
        ValueError: if what the card would say holds a place on this machine, or the scores there are damaged.
        PermissionError: if the folder cannot be written to.
    """
    folder = card_folder(args)
    if folder is None or not benchmark.has_references:
        return
    read_evaluations(folder)
    if not os.access(folder, os.W_OK):
        raise PermissionError(
            f"the scores go on the model card in {folder}, and it cannot be written to: give --no_card."
        )
    EvaluationResult(
        dataset=benchmark.dataset,
        split=benchmark.split,
        num_images=len(benchmark.images),
        metrics={"cider": 0.0},
        command=command_of(args),
    )


def is_on_card(folder: Path, benchmark: BenchmarkImages) -> bool:
    """Tell whether the card has scores of a benchmark."""
    return any(
        (result.dataset, result.split) == (benchmark.dataset, benchmark.split)
        for result in read_evaluations(folder)
    )


def put_on_card(
    folder: Path, args: EvaluateArguments, benchmark: BenchmarkImages, parts: Sequence[Part], tokenizer: str
) -> list[str]:
    """Put an evaluation's scores in place of those that the card has of the same benchmark.

    Args:
        folder: The captioner's.
        args: The evaluation's settings.
        benchmark: The images.
        parts: The scores of each domain, and of all images.
        tokenizer: What split the captions into words.

    Returns:
        What was done, a line each.
    """
    new = [_result(args, benchmark, part, tokenizer) for part in parts]
    old = read_evaluations(folder)
    write_evaluations(folder, _merge(old, new))
    shown, beside = folder / "README.md", f"{EVALUATION_FILE} beside it"
    if write_card(folder):
        lines = [f"Card       {shown} shows the scores, from {beside}"]
    else:
        lines = [f"Card       {shown} is a person's and left as it is; {beside} has the scores"]
    if gone := _gone(old, new):
        lines.append(
            f"           {' and '.join(gone)} of the earlier evaluation of {benchmark.dataset}, "
            f"{benchmark.split}, {'is' if len(gone) == 1 else 'are'} gone from there: this one is without"
        )
    return lines


def _result(
    args: EvaluateArguments, benchmark: BenchmarkImages, part: Part, tokenizer: str
) -> EvaluationResult:
    subset = None if part.name == ENTIRE else part.name
    return EvaluationResult(
        dataset=benchmark.dataset,
        split=benchmark.split,
        num_images=part.num_images,
        subset=subset,
        metrics=part.metrics,
        command=command_of(args),
        tokenizer=tokenizer,
        num_unreadable=benchmark.count_unreadable(subset, part.num_images),
    )


def _merge(old: Sequence[EvaluationResult], new: Sequence[EvaluationResult]) -> list[EvaluationResult]:
    """Keep what is known of other benchmarks."""
    replaced = {(result.dataset, result.split) for result in new}
    return [result for result in old if (result.dataset, result.split) not in replaced] + list(new)


def _gone(old: Sequence[EvaluationResult], new: Sequence[EvaluationResult]) -> list[str]:
    """Name the metrics that the card had of this benchmark, and has no more."""
    benchmark = (new[0].dataset, new[0].split)
    had = {name for result in old if (result.dataset, result.split) == benchmark for name in result.metrics}
    return [title for name, title in METRIC_NAMES.items() if name in had - set(new[0].metrics)]
