"""Recognize small image files that take hours to decode.

Pillow's limit on pixels does not prevent them: each scan of a JPEG costs the time of a pass over all pixels,
and the time for the metadata of a JPEG, the comments of a GIF and those of a text PPM is quadratic.
"""

from __future__ import annotations

import io
import re

_MAX_JPEG_SEGMENTS = 500  # photographs have up to 100: ten scans with their tables, and metadata
_MAX_GIF_EXTENSIONS = 2**18  # bytes before the first frame
_JPEG_SEGMENT = re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])")  # not a byte of a scan, nor a restart in it
_SCAN, _END_OF_JPEG = b"\xda", b"\xd9"
_EXTENSION, _FRAME, _END_OF_GIF = b"!,;"


def reject_slow_image(file: io.BufferedIOBase) -> None:
    """Check a file that is about to be decoded, and return to its beginning.

    Raises:
        ValueError: Its decoding would take very long.
    """
    beginning = file.read(3)
    file.seek(0)
    if beginning[:2] in (b"P1", b"P2", b"P3"):
        raise ValueError("it is a PPM in text form")
    if beginning == b"\xff\xd8\xff":
        _check_jpeg(file.read())
    elif beginning == b"GIF":
        _check_gif(file.read())
    file.seek(0)


def _check_jpeg(data: bytes) -> None:
    num_segments, position, has_scan = 0, 2, False
    while found := _JPEG_SEGMENT.search(data, position):
        num_segments += 1
        if num_segments > _MAX_JPEG_SEGMENTS:
            raise ValueError(f"it has more than {_MAX_JPEG_SEGMENTS} segments")
        position = found.end()
        if found[1] == _END_OF_JPEG:
            if has_scan:
                return
        else:
            position += int.from_bytes(data[position : position + 2])
        has_scan = has_scan or found[1] == _SCAN


def _check_gif(data: bytes) -> None:
    palette_size = 3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0
    position = start = 13 + palette_size
    while position < len(data) and data[position] not in (_FRAME, _END_OF_GIF):
        is_extension = data[position] == _EXTENSION
        position += 1
        if is_extension:
            position += 1  # the label
            while (size := data[position]) and position - start < _MAX_GIF_EXTENSIONS:
                position += 1 + size
        if position - start > _MAX_GIF_EXTENSIONS:
            raise ValueError(f"it has more than {_MAX_GIF_EXTENSIONS} bytes before its first frame")
