"""JSON that others wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: It is none.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # also UnicodeDecodeError
        raise ValueError(f"{path} is not a JSON file: {error}") from error


def parse_json(text: str) -> Any:
    """Parse a JSON text.

    Raises:
        ValueError: It is none, or its lists and objects lie in one another too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its lists and objects are nested too deeply") from error
