"""The command line of `ituning train`."""

from __future__ import annotations

from collections.abc import Sequence

from ..utils.settings.command_line import CommandLine
from .arguments import SECTIONS, TrainArguments

_COMMAND_LINE = CommandLine(
    TrainArguments,
    SECTIONS,
    prog="ituning train",
    description="""\
Train an image captioner: small adapters between a frozen CLIP and a frozen
GPT-2. Only the adapters are trained and stored. Without any option it trains
on rendered scenes. Every option may as well stand in a YAML file.""",
    examples="""\
examples:
  ituning train --dataset photos/ --vision_model openai/clip-vit-base-patch16 \\
      --text_model gpt2 --output_dir outputs/mine --dry_run
  ituning train --config run.yaml --learning_rate 1e-4
  ituning train --config run.yaml --resume_from_checkpoint latest
  accelerate launch -m ituning_hf.cli train --config run.yaml  # several GPUs
""",
)


def parse_arguments(argv: Sequence[str] | None = None) -> TrainArguments:
    """Read the settings of a run; see `CommandLine.parse`."""
    return _COMMAND_LINE.parse(argv)
