"""Telling a captioner as it was saved from one in which something was changed since: digests of its files.

They find damage, files of two captioners in one folder, and settings that were edited: whatever would load as
another model than the one that was trained. They are no signatures: who changes a file on purpose can change
its digest too.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from collections.abc import Mapping
from typing import Any

import torch

# What may differ: the digest itself; where the frozen models lie, for whom their own fingerprints answer;
# what is not a file's to choose; and what libraries write of themselves and of how they came by a file.
_FREE = frozenset(
    {
        "fingerprints",
        "config_fingerprint",
        "vision_model_name_or_path",
        "vision_model_revision",
        "text_model_name_or_path",
        "text_model_revision",
        "name_or_path",
        "auto_map",
        "processor_class",
        "attn_implementation",
        "is_local",
        "local_files_only",
        "transformers_version",
    }
)
_FLOAT = "__float__"


def json_fingerprint(content: Mapping[str, Any]) -> str:
    """Hash what a JSON file holds, but for what may differ, however it is laid out.

    Returns:
        32 hexadecimal digits.

    Raises:
        ValueError: if it is nested too deeply.
    """
    try:
        text = json.dumps(_without_the_free(content), sort_keys=True)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return _digest(text.encode())


def file_fingerprint(path: str | os.PathLike[str]) -> str:
    """Hash a text file; the ends of its lines, which some ways of copying change, do not count."""
    with open(path, "rb") as file:
        return _digest(file.read().replace(b"\r\n", b"\n"))


def tensors_fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hash tensors: their names, kinds, shapes and bytes.

    A checksum stands for the bytes of each, since a cryptographic hash of them would take as long as all the
    rest of loading an adapter.

    Returns:
        32 hexadecimal digits.
    """
    lines = (
        f"{key} {tensor.dtype} {list(tensor.shape)} {zlib.crc32(_bytes_of(tensor))}"
        for key, tensor in sorted(tensors.items())
    )
    return _digest("\n".join(lines).encode())


def check_config_unchanged(stored: Mapping[str, Any]) -> None:
    """Refuse a stored configuration that is not as it was saved; one without a fingerprint is taken as it is.

    Raises:
        ValueError: saying how a setting is changed on purpose.
    """
    recorded = stored.get("config_fingerprint")
    if recorded is not None and (found := json_fingerprint(stored)) != recorded:
        raise ValueError(
            f"config.json was changed after it was saved (its content has fingerprint {found}, recorded is "
            f"{recorded!r}): undo that, or copy or download it again. To change a setting on purpose, load "
            "the captioner as it was saved, with the setting as a keyword, from_pretrained(..., "
            "adapter_scale=0.5), and save it again."
        )


def check_adapter_unchanged(tensors: Mapping[str, torch.Tensor], config: Any, name: str) -> None:
    """Refuse an adapter's tensors that are not those which were saved with the configuration.

    Args:
        tensors: As the adapter's file holds them.
        config: Holds their fingerprint, or None where nothing was recorded.
        name: Where they come from, for the message.

    Raises:
        ValueError: if they are others.
    """
    recorded = config.adapter_fingerprint
    if recorded is not None and (found := tensors_fingerprint(tensors)) != recorded:
        raise ValueError(
            f"The adapter file of {name!r} is not the one that config.json was saved with: its tensors have "
            f"fingerprint {found}, recorded is {recorded!r}. It was damaged or changed since, or is another "
            "captioner's: copy or download both again."
        )


def _without_the_free(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            key: _without_the_free(part)
            for key, part in value.items()
            if key not in _FREE and (key == _FLOAT or not key.startswith("_"))
        }
    if isinstance(value, list):
        return [_without_the_free(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: json.dumps(value)}  # as Transformers stores it
    return value


def _bytes_of(tensor: torch.Tensor) -> Any:
    return tensor.detach().to("cpu").reshape(-1).view(torch.uint8).numpy()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


__all__ = [
    "check_adapter_unchanged",
    "check_config_unchanged",
    "file_fingerprint",
    "json_fingerprint",
    "tensors_fingerprint",
]
