"""Images to send."""

import io
from typing import Any

from PIL import Image


def encode(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return the bytes of an image file."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


PNG = encode(Image.linear_gradient("L").rotate(30))
BOMB = encode(Image.new("1", (10_000, 10_000)))
