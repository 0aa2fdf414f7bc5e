"""An evaluation as a line that others can repeat, without the places of a machine."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..model_card.evaluation_results import is_absolute
from .arguments import EvaluateArguments

# Of no effect on the numbers.
_WITHOUT_EFFECT = {
    *("dataset_name", "dataloader_num_workers", "max_unreadable_share"),
    *("output_dir", "overwrite", "no_card", "dry_run"),
}


def public_settings(args: EvaluateArguments) -> dict[str, Any]:
    """Return the settings, of a place on this machine only its last part."""
    return {name: _without_folders(name, value) for name, value in args.to_dict().items()}


def command_of(args: EvaluateArguments) -> str:
    """Return the command line that finds the same numbers, from the folders' own place."""
    words = ["ituning", "evaluate"]
    for declared in fields(args):
        value = getattr(args, declared.name)
        if declared.name not in _WITHOUT_EFFECT and value != declared.default:
            shown = str(value).lower() if isinstance(value, bool) else _without_folders(declared.name, value)
            words += [f"--{declared.name}", str(shown)]
    return shlex.join(words)


def _without_folders(name: str, value: Any) -> Any:
    if name in EvaluateArguments.paths and isinstance(value, str) and is_absolute(value):
        return Path(value).name
    return value
