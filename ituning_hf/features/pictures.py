"""Telling a picture from another one of the same name, without reading all pictures again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..data.images import open_file
from ..data.records import CaptionedImage

# Of so many pictures the content is compared too. That tells another data set under the same names, or one
# that was drawn anew, where all files are of one size.
_COMPARED_CONTENTS = 64


class Picture(NamedTuple):
    """What a picture was when its features were computed.

    Args:
        num_bytes: Of its file, or of what else it is made from; None if it could not be looked at.
        digest: Of these bytes; None if they could not be read.
    """

    num_bytes: int | None
    digest: str | None

    @classmethod
    def of(cls, record: CaptionedImage) -> Picture:
        """Look at a picture as it is now, reading all of it."""
        try:
            return cls(num_bytes(record), digest(record))
        except OSError:
            return cls(num_bytes(record), None)


def num_bytes(record: CaptionedImage) -> int | None:
    """Return the bytes of a picture without reading it, None if its file is not there."""
    if not isinstance(record.source, Path):
        return record.source.num_bytes
    try:
        return record.source.stat().st_size
    except OSError:
        return None


def digest(record: CaptionedImage) -> str:
    """Return a digest of a picture's bytes.

    Raises:
        OSError: Its file cannot be read.
    """
    if not isinstance(record.source, Path):
        return hashlib.sha256(record.source.read()).hexdigest()[:16]
    with open_file(record.source) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]  # which never holds all of it


def find_changed(known: Sequence[tuple[CaptionedImage, Picture]]) -> list[str]:
    """Name the images whose picture is there and is another one than it was.

    All are compared by their size; some, spread over all of them, by their content as well. A single picture
    that was changed and has the very same size passes.

    Args:
        known: Images, each with what its picture was.
    """
    changed = []
    step = max(1, len(known) // _COMPARED_CONTENTS)
    for position, (record, picture) in enumerate(known):
        now = num_bytes(record)
        if now is None:
            continue
        if now != picture.num_bytes or (position % step == 0 and _other_content(record, picture)):
            changed.append(record.name)
    return changed


def _other_content(record: CaptionedImage, picture: Picture) -> bool:
    return Picture.of(record) != picture
