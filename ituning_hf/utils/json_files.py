"""Read JSON of unknown origin: any defect is one kind of error."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .errors import UserError


def parse_json(text: str, where: str) -> Any:
    """Parse JSON; `where` names its file or line in the error.

    Raises:
        UserError: It is not JSON, is nested too deeply, or has a number of thousands of digits.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}") from error


def read_utf8(path: str | os.PathLike[str]) -> str:
    """Read a text file in UTF-8, with or without a byte order mark.

    Raises:
        OSError: It cannot be read.
        UserError: It has another encoding.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{os.fspath(path)} is not UTF-8 text: {error}") from error


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        OSError: It cannot be read.
        UserError: It is not JSON.
    """
    return parse_json(read_utf8(path), os.fspath(path))


def read_json_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Raises:
        OSError: It cannot be read.
        UserError: It holds something else.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{os.fspath(path)} holds a {type(content).__name__}, expected a JSON object")
    return content
