"""An evaluation's scores beside the captioner: `evaluation.json`, and the model card that shows it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..model_card import write_card
from ..model_card.evaluation_results import (
    EVALUATION_FILE,
    EvaluationResult,
    read_evaluations,
    write_evaluations,
)
from .arguments import EvaluateArguments
from .command import command_of
from .images import BenchmarkImages
from .report import Evaluation
from .scoring import ENTIRE


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


def put_on_card(folder: Path, evaluation: Evaluation, args: EvaluateArguments) -> list[str]:
    """Put an evaluation's scores in place of those that the card has of the same benchmark.

    Returns:
        What was done, a line each.
    """
    new = [
        EvaluationResult(
            dataset=evaluation.benchmark.dataset,
            split=evaluation.benchmark.split,
            num_images=part.num_images,
            subset=None if part.name == ENTIRE else part.name,
            metrics=part.metrics,
            command=command_of(args),
        )
        for part in evaluation.parts
    ]
    write_evaluations(folder, _merge(read_evaluations(folder), new))
    if write_card(folder):
        return [f"Card       {folder / 'README.md'} shows the scores, from {EVALUATION_FILE} beside it"]
    return [
        f"Card       {folder / 'README.md'} is a person's and left as it is; {EVALUATION_FILE} beside it has "
        "the scores"
    ]


def _merge(old: Sequence[EvaluationResult], new: Sequence[EvaluationResult]) -> list[EvaluationResult]:
    """Keep what is known of other benchmarks."""
    replaced = {(result.dataset, result.split) for result in new}
    return [result for result in old if (result.dataset, result.split) not in replaced] + list(new)
