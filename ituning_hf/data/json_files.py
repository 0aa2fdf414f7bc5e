"""JSON that others wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..captioner.json_ituning import parse_json


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: It is none.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # also UnicodeDecodeError
        raise ValueError(f"{path} is not a JSON file: {error}") from error
