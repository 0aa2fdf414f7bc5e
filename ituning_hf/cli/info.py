"""`ituning info`: describe a saved captioner."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..utils.rules import NOT_EMPTY
from ..utils.settings import REQUIRED, Settings, option, read_settings
from ..utils.terminal import quiet_transformers


@dataclass
class InfoArguments(Settings):
    """The settings of `ituning info`."""

    paths: ClassVar[frozenset[str]] = frozenset({"model"})

    model: str = option(REQUIRED, "a captioner's folder or Hub id", NOT_EMPTY, "MODEL", positional=True)
    revision: str | None = option(None, "its revision on the Hub", NOT_EMPTY, unset="the newest")
    json: bool = option(False, "print JSON")


def run(argv: Sequence[str]) -> int:
    """Print the description and return the exit code."""
    args = read_settings(
        InfoArguments, argv, "ituning info", "Describe a saved captioner without loading its weights."
    )
    quiet_transformers()
    from ..hub.inspection import describe
    from .description import format_description

    description = describe(args.model, revision=args.revision)
    print(json.dumps(description, indent=2) if args.json else format_description(description))
    return 0
