"""`ituning convert`: a captioner to an adapter of PEFT, and back."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .arguments import HelpFormatter

_EXAMPLES = """\
examples:
  ituning convert my-captioner my-adapter
  ituning convert my-adapter my-captioner-again

The weights stay the same, to the last byte after a round trip.
"""


def add_parser(commands: Any) -> None:
    """Add the command to those of `ituning`."""
    parser = commands.add_parser(
        "convert",
        help="make a PEFT adapter of a captioner, or a captioner of a PEFT adapter",
        description="Make an adapter for PEFT's AutoPeftModelForCausalLM of a saved captioner, or a "
        "captioner of such an adapter: whichever SOURCE is not.",
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", help="either's folder or Hub id")
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="a new or empty folder")
    parser.add_argument("--revision", help="the source's revision on the Hub")
    parser.add_argument("--vision_model", help="its vision encoder, in place of the recorded one")
    parser.add_argument("--text_model", help="its language model, in place of the recorded one")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Convert, say what was written, and return the exit code."""
    import warnings

    from ..tuner.folders import convert

    warnings.simplefilter("ignore", FutureWarning)  # PEFT's, of what Transformers will rename
    written = convert(
        options.source,
        options.output,
        revision=options.revision,
        vision_model=options.vision_model,
        text_model=options.text_model,
    )
    kind = {"adapter": "a PEFT adapter", "captioner": "a captioner"}[written]
    print(f"{kind} is in {options.output}")
    return 0
