"""The ids of images in annotations and result files, which programs write as numbers, strings or floats."""

import re
from typing import Any

_WHOLE = re.compile(r"(0|-?[1-9][0-9]{0,999})(\.0)?")


def image_id_key(value: Any) -> int | str | None:
    """Return a key that is equal for equal ids: that of 42, 42.0, "42" and "42.0" is 42.

    The key of another string is the string itself, such as "042" or "dog". Other values have no key.
    """
    if isinstance(value, str):
        whole = _WHOLE.fullmatch(value)
        return int(whole[1]) if whole else value or None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def parse_image_id(value: Any) -> int | str | None:
    """Return an id in the type that the dataset gives it, or whole floats as int; None for other values."""
    return value if isinstance(value, str) and value else image_id_key(value)
