"""Captions in a cell of a table."""

from __future__ import annotations

import ast
import io
import itertools
import json
import math
import re
import reprlib
import tokenize
import warnings
from collections.abc import Iterator
from typing import Any

from ..utils.errors import UserError
from .records import clean_captions

CAPTION_COLUMNS = ("caption", "captions", "text", "sentence", "sentences", "comment", "raw")

_LIST = re.compile(r"\s*(array\s*\(|[\[({]).*[\])}]\s*", re.DOTALL)


def parse_captions(value: Any, column: str) -> tuple[str, ...]:
    """Return the captions in a cell, cleaned and without missing ones: None, NaN and blank text.

    Args:
        value: A caption; a list of captions, which may be in lists or in objects such as {"raw": "a dog"}; or
            such a list as text, as JSON, Python or NumPy write it. Other text is a caption.
        column: The name of the column, for the error message.

    Raises:
        UserError: The value is something else.
    """
    try:
        return clean_captions(_captions_in(_parse_list(value) if isinstance(value, str) else value))
    except TypeError:
        if isinstance(value, str) and not re.search("[\"']", value):  # such as [2019]
            return clean_captions([value])
        raise UserError(
            f"{column!r} must be a string or a list of strings, got {reprlib.repr(value)}"
        ) from None


def _captions_in(value: Any, depth: int = 0) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict) and (found := [value[key] for key in CAPTION_COLUMNS if key in value]):
        yield from _captions_in(found[0], depth)
    elif isinstance(value, list) and depth < 2:
        for item in value:
            yield from _captions_in(item, depth + 1)
    elif not (value is None or (isinstance(value, float) and math.isnan(value))):
        raise TypeError


def _parse_list(text: str) -> Any:
    """Parse a list such as `["a dog"]`, `('a dog', None)` or `array(['a dog'])`; other text is returned."""
    if not _LIST.fullmatch(text):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            with warnings.catch_warnings(action="ignore"):  # of unknown escapes, such as "\d"
                value = _evaluate(ast.parse(_insert_commas(text.strip()), mode="eval").body)
        # Python's parser cannot read it, or it has names or operators.
        except (MemoryError, RecursionError, SyntaxError, TypeError, ValueError, tokenize.TokenError):
            return text
    return value if isinstance(value, list | dict) else text


def _insert_commas(text: str) -> str:
    """Separate adjacent values: NumPy prints arrays as `['a dog' 'a puppy']`."""
    tokens = [*tokenize.generate_tokens(io.StringIO(text).readline)]
    if any(token.type == tokenize.ERRORTOKEN for token in tokens):  # an exception since Python 3.12
        raise SyntaxError
    strings = [token.string for token in tokens if token.string.strip()]
    for i, (left, right) in enumerate(itertools.pairwise(strings)):
        if left[-1] not in "[({,:=" and right[0] not in "])},:=(":
            strings[i] += ","
    return " ".join(strings)


def _evaluate(node: ast.expr | None) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_evaluate(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return {_evaluate(key): _evaluate(item) for key, item in zip(keys, values, strict=True)}
        case ast.Call(func=ast.Name(id="array"), args=[items, *_]):
            return _evaluate(items)
        case ast.Name(id="nan" | "null"):
            return None
    raise ValueError
