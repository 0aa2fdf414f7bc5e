"""`ituning evaluate`: caption a split of a data set and score the captions."""

from __future__ import annotations

from collections.abc import Sequence

from ..evaluation.arguments import EvaluateArguments
from ..utils.settings import read_settings

_DESCRIPTION = """\
Caption a split of a data set and score the captions against the human captions
with the official scorers."""
_EXAMPLES = """\
examples:
  ituning evaluate --model outputs/mine/best --dataset photos/ --split val
  ituning evaluate --config coco.yaml --model outputs/coco/best --dry_run
  ituning evaluate --predictions results.json --dataset coco/dataset_coco.json
  accelerate launch -m ituning_hf.cli evaluate --config coco.yaml  # on GPUs

It writes results.json (the COCO result format), metrics.json (every score and
the settings) and per_image.jsonl.

pip install 'ituning_hf[eval]' installs the scorers. METEOR needs Java; SPICE
needs Java 8 to 11 and its models, which python -m
pycocoevalcap.spice.get_stanford_models installs.

Exit code: 0; 1 if the evaluation failed, such as at images that cannot be read;
2 for a mistake in the settings or the data; 130 after Ctrl-C.
"""


def parse_arguments(argv: Sequence[str]) -> EvaluateArguments:
    """Read the settings of an evaluation."""
    return read_settings(EvaluateArguments, argv, "ituning evaluate", _DESCRIPTION, _EXAMPLES)


def run(argv: Sequence[str]) -> int:
    """Evaluate, and return the exit code."""
    args = parse_arguments(argv)
    from ..evaluation.run import evaluate_captioner
    from ..utils.distributed import OtherProcessError, command_process

    try:
        with command_process():
            evaluate_captioner(args)
    except OtherProcessError as error:
        return error.exit_code
    return 0
