"""Render the templates of this folder, and embed images in them."""

from __future__ import annotations

import base64
import io
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from PIL import Image


def render_page(template: str, **values: Any) -> str:
    """Render a template of this folder, such as "demo.html.jinja".

    Values are escaped. To pass data to a script, use the filter `tojson`.
    """
    pages = Environment(
        loader=PackageLoader("ituning_hf", "pages"),
        autoescape=select_autoescape(["html.jinja"]),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return pages.get_template(template).render(values)


def image_url(image: Image.Image, side: int | None = None) -> str:
    """Return an image as a data URL: JPEG, or PNG if the image has transparency.

    Args:
        image: The image, of mode "RGB" or "RGBA".
        side: The length in pixels of the longer side, if the image is larger.
    """
    if side is not None and max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    image_format = "PNG" if image.mode == "RGBA" else "JPEG"
    file = io.BytesIO()
    image.save(file, format=image_format, quality=85)
    return f"data:image/{image_format.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
