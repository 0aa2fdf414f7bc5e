"""Find the files of a saved captioner, in a folder or on the Hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME, cached_file

from ..captioner.configuration_ituning import ITuningConfig
from ..utils.errors import UserError
from ..utils.hub import explain_hub_error
from ..utils.json_files import read_json_object

_PEFT = "holds a PEFT adapter: `ituning convert` makes a captioner of it"


def read_config(
    model_name_or_path: str | os.PathLike[str], revision: str | None = None
) -> tuple[Path, dict[str, Any]]:
    """Read a captioner's `config.json`.

    Args:
        model_name_or_path: The captioner's folder or Hub id.
        revision: The captioner's revision on the Hub.

    Returns:
        The local folder that holds the file, and its contents.

    Raises:
        OSError: if there is no such file.
        UserError: if it belongs to another model.
    """
    name = os.fspath(model_name_or_path)
    try:
        path = cached_file(name, CONFIG_NAME, revision=revision)
        if path is None:  # Transformers excuses a folder without config.json, and no other file
            raise FileNotFoundError(f"no {CONFIG_NAME} in {name!r}")
    except OSError as error:
        raise OSError(
            f"There is no captioner at {name!r}: {_explain(name, revision, error)}. Give the folder or the "
            "Hub id of a captioner."
        ) from error
    config = read_json_object(path)
    if (model_type := config.get("model_type")) != ITuningConfig.model_type:
        advice = f"it {_PEFT}" if holds_peft_adapter(name, revision) else "give an I-Tuning captioner"
        raise UserError(
            f"{name!r} holds a model of type {model_type!r}, expected {ITuningConfig.model_type!r}: {advice}."
        )
    return Path(path).parent, config


def find_optional(name: str, filename: str, revision: str | None = None) -> Path | None:
    """Find a file in a folder or Hub repository; None without it, or if the Hub cannot be reached."""
    try:
        path = cached_file(name, filename, revision=revision, _raise_exceptions_for_missing_entries=False)
    except OSError:
        return None
    return None if path is None else Path(path)


def holds_peft_adapter(name: str, revision: str | None = None) -> bool:
    """Return whether a folder or Hub repository holds a PEFT adapter, of any method."""
    return find_optional(name, "adapter_config.json", revision) is not None


def _explain(name: str, revision: str | None, error: OSError) -> str:
    if holds_peft_adapter(name, revision):
        return f"{'the folder' if os.path.isdir(name) else 'the repository'} {_PEFT}"
    if os.path.isfile(name):
        return "it is a file, not a folder"
    if not os.path.isdir(name):
        reason = explain_hub_error(error) or str(error).rstrip(".")
        return f"the folder does not exist, and as a Hub id: {reason}"
    subfolders = sorted(path.parent.name for path in Path(name).glob(f"*/{CONFIG_NAME}"))
    found = f", but its subfolders {subfolders} do" if subfolders else ""
    return f"the folder has no {CONFIG_NAME}{found}"


__all__ = ["find_optional", "holds_peft_adapter", "read_config"]
