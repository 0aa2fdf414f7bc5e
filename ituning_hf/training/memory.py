"""How much memory was used, and how to write it."""

from __future__ import annotations

import sys


def peak_resident_memory() -> int:
    """Return the most memory that this process had resident so far, in bytes."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def format_bytes(count: int) -> str:
    """Write a number of bytes in the unit that suits it.

    Example:
    ```python
    >>> format_bytes(529_408)
    '517 KiB'

    ```
    """
    size, units = float(count), ["bytes", "KiB", "MiB", "GiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.4g} {units[0]}"
