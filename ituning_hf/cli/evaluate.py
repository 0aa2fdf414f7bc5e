"""`ituning evaluate`: caption a split of a dataset and score the captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..evaluation.arguments import EvaluateArguments
from ..utils.settings import read_settings

if TYPE_CHECKING:
    from ..evaluation.report import Evaluation

_DESCRIPTION = """\
Caption a split of a dataset and score the captions against the human captions
with the official scorers."""
_EXAMPLES = """\
examples:
  ituning evaluate --model outputs/mine/best --dataset photos/ --split val
  ituning evaluate --config coco.yaml --model outputs/coco/best --dry_run
  ituning evaluate --predictions results.json --dataset coco/dataset_coco.json
  ituning evaluate --model MODEL --dataset photos/ --report report.html
  accelerate launch -m ituning_hf.cli evaluate --config coco.yaml  # on GPUs

It writes results.json (the COCO result format), metrics.json (every score and
the settings) and per_image.jsonl. --report writes a page as well.

pip install 'ituning_hf[eval]' installs the scorers. METEOR requires Java; SPICE
needs Java 8 to 11 and its models, which python -m
pycocoevalcap.spice.get_stanford_models installs.

Exit code: 0; 1 if the evaluation failed, such as at images that cannot be read;
2 for an error in the settings or the data; 130 after Ctrl-C.
"""


def parse_arguments(argv: Sequence[str]) -> EvaluateArguments:
    """Read the settings of an evaluation."""
    return read_settings(EvaluateArguments, argv, "ituning evaluate", _DESCRIPTION, _EXAMPLES)


def run(argv: Sequence[str]) -> int:
    """Evaluate, print the scores, show them on the captioner's model card, and return the exit code."""
    args = parse_arguments(argv)
    from ..evaluation.report import describe
    from ..evaluation.run import evaluate_captioner
    from ..hub.card import check_card
    from ..utils.distributed import command_process

    on_card = args.model is not None and Path(args.model).is_dir() and not args.no_card
    with command_process():
        if on_card and args.model is not None:
            check_card(args.model)
        evaluation = evaluate_captioner(args)
    if evaluation is None:  # another process than the main one
        return 0
    print(describe(evaluation))
    if args.dry_run:
        print("Dry run: no scores; nothing is written.")
        return 0
    print(f"Results in {args.output_dir}")
    if args.report is not None:
        print(f"Report: {args.report}")
    if evaluation.parts and on_card:
        print(_add_to_card(args, evaluation))
    return 0


def _add_to_card(args: EvaluateArguments, evaluation: Evaluation) -> str:
    from ..evaluation.report import ENTIRE
    from ..hub.card import add_evaluation
    from ..hub.records import DRAWN_SCENES, EvaluationRecord, read_training_record

    assert args.model is not None
    training = read_training_record(args.model)
    names = {evaluation.dataset} | ({DRAWN_SCENES} if evaluation.dataset == "scenes" else set())
    if training and training.dataset in names and evaluation.split in ("train", "all"):
        return (
            f"Warning: {evaluation.dataset}, {evaluation.split}, has images that training used: the model "
            "card does not show the scores. Give --split val or test, or another --dataset_name."
        )
    records = [
        EvaluationRecord(
            dataset=evaluation.dataset,
            split=evaluation.split,
            num_images=scores.num_images,
            subset=None if name == ENTIRE else name,
            metrics=scores.metrics,
            command=args.command(),
            tokenizer=scores.tokenizer,
            num_unreadable=sum(name in (ENTIRE, image.domain) for image in evaluation.unreadable),
        )
        for name, scores in evaluation.parts.items()
    ]
    if add_evaluation(args.model, records):
        return f"The model card in {args.model} shows the scores."
    return f"The model card in {args.model} was edited and is unchanged; evaluation.json has the scores."
