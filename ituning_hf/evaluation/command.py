"""An evaluation as a line that others can repeat, without the places of a machine."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..hub.evaluation_results import is_absolute
from .arguments import EvaluateArguments

# Told even at their defaults, which a reader need not know.
_ALWAYS = {"dataset", "split"}
# Of no effect on the numbers, but for a last digit. Features are told in a remark: others have the pictures.
_WITHOUT_EFFECT = {
    *("expected_images", "batch_size", "features", "dataloader_num_workers", "max_unreadable_share"),
    *("output_dir", "overwrite", "no_card", "dry_run"),
}


def public_settings(args: EvaluateArguments) -> dict[str, Any]:
    """Return the settings, of a place on this machine only its last part."""
    return {name: _without_folders(name, value, "") for name, value in args.to_dict().items()}


def command_of(args: EvaluateArguments) -> str:
    """Return the command line that finds the same numbers; a place on this machine is "path/to/" its name."""
    words = ["ituning", "evaluate"]
    for declared in fields(args):
        value = getattr(args, declared.name)
        told = declared.name in _ALWAYS or value != declared.default
        if told and declared.name not in _WITHOUT_EFFECT:
            value = _without_folders(declared.name, value, "path/to/")
            words += [f"--{declared.name}", str(value).lower() if isinstance(value, bool) else str(value)]
    return shlex.join(words) + ("" if args.features is None else "  # from stored features")


def _without_folders(name: str, value: Any, instead: str) -> Any:
    if name in EvaluateArguments.paths and isinstance(value, str) and is_absolute(value):
        return instead + Path(value).name
    return value
