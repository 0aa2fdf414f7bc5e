"""The files of a saved processor: as they were saved, and nothing in them that points elsewhere."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import PROCESSOR_NAME, cached_file
from transformers.utils.hub import resolve_revision

from .json_ituning import read_json_object
from .seal_ituning import file_fingerprint, json_fingerprint

_TOKENIZER_SETTINGS = "tokenizer_config.json"
_SETTINGS = (PROCESSOR_NAME, _TOKENIZER_SETTINGS)  # compared by what they hold, others by their text
# All that Transformers may read token ids or pixels from; what is not among a processor's must not be there.
# A preprocessor_config.json may: it is for other programs, since a processor's settings hold all of it.
_FILES = (
    *_SETTINGS,
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
_BESIDE_ITS_JSON = {"vocab.json", "merges.txt"}  # where there is a tokenizer.json, nobody reads them
# Settings by which Transformers reads from wherever they say, or builds another model.
_POINTERS = {
    PROCESSOR_NAME: {"audio_tokenizer"},
    _TOKENIZER_SETTINGS: {"fast_tokenizer_files", "merges", "vocab"},
}


def seal_processor_files(processor_file: str | os.PathLike[str]) -> None:
    """Put the fingerprints of a processor's files into its settings; the others are there before them."""
    folder = Path(processor_file).parent
    content = read_json_object(processor_file)
    content["fingerprints"] = _fingerprints(
        {name: folder / name for name in _FILES if (folder / name).is_file()}
    )
    Path(processor_file).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def check_processor_files(name: str, **hub_kwargs: Any) -> None:
    """Refuse files of a processor that were changed since they were saved, or that point elsewhere.

    Of a processor that was saved without fingerprints the settings alone are looked at.

    Args:
        name: The processor's folder or Hub id.
        **hub_kwargs: `revision`, `subfolder`, `token`, `cache_dir`, `local_files_only`, `force_download`.

    Raises:
        ValueError: naming the file; a `ChangedFilesError` where it is not as it was saved.
    """
    revision = hub_kwargs.pop("revision", None)
    of_revision = {
        key: hub_kwargs[key] for key in ("token", "cache_dir", "local_files_only") if key in hub_kwargs
    }
    hub_kwargs["revision"] = resolve_revision(name, revision, **of_revision)
    hub_kwargs["_raise_exceptions_for_missing_entries"] = False
    settings = {file: path for file in _SETTINGS if (path := cached_file(name, file, **hub_kwargs))}
    contents = {file: read_json_object(path) for file, path in settings.items()}
    for file, content in contents.items():
        if named := sorted(_POINTERS[file] & set(content)):
            raise ValueError(
                f"{settings[file]} names other files to read the tokenizer from ({named}), which no "
                "captioner's does: it was tampered with, so do not use it."
            )
    recorded = contents.get(PROCESSOR_NAME, {}).get("fingerprints")
    if recorded is None:
        return
    found = {file: path for file in _FILES if (path := cached_file(name, file, **hub_kwargs))}
    if (fingerprints := _fingerprints(found)) != recorded:
        _refuse_changed(name, fingerprints, recorded)


class ChangedFilesError(ValueError):
    """Files of a processor are not as they were saved."""


def _refuse_changed(name: str, found: dict[str, str], recorded: Any) -> None:
    recorded = recorded if isinstance(recorded, dict) else {}
    changed = [
        file if file in found else f"{file} is missing"
        for file in _FILES
        if found.get(file) != recorded.get(file)
    ] or [PROCESSOR_NAME]
    raise ChangedFilesError(
        f"The processor of {name!r} was changed after it was saved ({', '.join(changed)}): undo that, or "
        "copy or download it again. To change it on purpose, load it as it was saved, set its attributes "
        "(processor.image_processor.size, say), and save it again; or build one of changed parts, "
        "ITuningProcessor(image_processor, tokenizer), and save that."
    )


def _fingerprints(files: Mapping[str, str | os.PathLike[str]]) -> dict[str, str]:
    ignored = _BESIDE_ITS_JSON if "tokenizer.json" in files else set()
    return {
        name: json_fingerprint(read_json_object(path)) if name in _SETTINGS else file_fingerprint(path)
        for name, path in sorted(files.items())
        if name not in ignored
    }


__all__ = ["ChangedFilesError", "check_processor_files", "seal_processor_files"]
