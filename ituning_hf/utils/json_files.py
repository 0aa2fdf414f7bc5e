"""Reading JSON that anyone may have written: what is wrong with it is always one kind of error."""

from __future__ import annotations

import json
import os
from typing import Any


def parse_json(text: str) -> Any:
    """Parse JSON.

    Raises:
        json.JSONDecodeError: which is a `ValueError`; also for what Python's parser gives up on, lists within
            lists by the thousand and numbers of thousands of digits.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        problem = "nested too deeply"
    except ValueError as error:
        problem = str(error)
    raise json.JSONDecodeError(problem, text, 0)


def read_json_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Raises:
        OSError: if it cannot be read.
        ValueError: naming the file, if that is not what it holds.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = parse_json(file.read())
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)} is not JSON ({error}): copy or download it again.") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{os.fspath(path)} holds a {type(content).__name__}, expected an object: copy or download it "
            "again."
        )
    return content


__all__ = ["parse_json", "read_json_object"]
