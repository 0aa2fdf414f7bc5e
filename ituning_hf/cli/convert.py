"""`ituning convert`: convert a captioner to a PEFT adapter, or a PEFT adapter to a captioner."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..utils.rules import FOLDER, MODEL, NAME
from ..utils.settings import REQUIRED, Settings, option, read_settings
from ..utils.terminal import quiet_transformers

_DESCRIPTION = """\
Convert a saved captioner to an adapter for PEFT's AutoPeftModelForCausalLM, or
such an adapter to a captioner. The format of SOURCE decides which."""
_EXAMPLES = """\
examples:
  ituning convert my-captioner my-adapter
  ituning convert my-adapter my-captioner-again

The weights stay the same: after a round trip every byte is equal.
"""


@dataclass
class ConvertArguments(Settings):
    """The settings of `ituning convert`."""

    source: str = option(
        REQUIRED, "the captioner's or adapter's folder or Hub id", NAME, metavar="SOURCE", positional=True
    )
    output: str = option(REQUIRED, "a new or empty folder", FOLDER, metavar="OUTPUT", positional=True)
    revision: str | None = option(None, "the source's revision on the Hub", NAME, "the newest")
    vision_model: str | None = option(
        None, "its vision encoder, instead of the recorded one", MODEL, "as recorded"
    )
    text_model: str | None = option(
        None, "its language model, instead of the recorded one", MODEL, "as recorded"
    )


def run(argv: Sequence[str]) -> int:
    """Convert, print what was written, and return the exit code."""
    args = read_settings(ConvertArguments, argv, "ituning convert", _DESCRIPTION, _EXAMPLES)
    quiet_transformers()
    warnings.simplefilter("ignore", FutureWarning)  # PEFT calls Transformers by deprecated names
    from ..tuner.conversion import convert

    written = convert(
        args.source,
        Path(args.output),
        revision=args.revision,
        vision_model=args.vision_model,
        text_model=args.text_model,
    )
    print(f"wrote {'a PEFT adapter' if written == 'adapter' else 'a captioner'} to {args.output}")
    return 0
