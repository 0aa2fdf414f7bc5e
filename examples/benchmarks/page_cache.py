"""Files in the system's page cache, and out of it."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from pathlib import Path


def can_drop(folder: Path) -> bool:
    """Tell whether a folder's files leave the page cache when the system is asked; in memory they stay."""
    if not hasattr(os, "posix_fadvise"):
        return False
    probe = folder / "probe"
    probe.write_bytes(bytes(mmap.PAGESIZE))
    try:
        drop_from_cache([probe])
    except RuntimeError:
        return False
    finally:
        probe.unlink()
    return True


def drop_from_cache(paths: Sequence[Path]) -> None:
    """Take files out of the system's page cache.

    Raises:
        RuntimeError: Some pages stayed, so that a reading would not be cold.
    """
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)  # pages that are not on the disk yet stay
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    if (share := cached_share(paths)) > 0.01:
        raise RuntimeError(
            f"{share:.0%} of the files stayed in the page cache: they must be on a disk (--folder), not in a "
            "file system in memory."
        )


def cached_share(paths: Sequence[Path]) -> float:
    """Return which part of the files' pages is in the system's cache."""
    cached = total = 0
    for path in paths:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
            pages = -(-len(mapped) // mmap.PAGESIZE)
            flags = (ctypes.c_ubyte * pages)()
            start = ctypes.c_char.from_buffer(mapped)
            address = ctypes.c_void_p(ctypes.addressof(start))
            failed = ctypes.CDLL(None).mincore(address, ctypes.c_size_t(len(mapped)), flags)
            del start
            if failed:
                raise OSError("mincore failed")
            cached, total = cached + sum(flag & 1 for flag in flags), total + pages
    return cached / total
