"""HTML pages. Each is one file that loads nothing else: images, styles and scripts are part of it."""

from .rendering import image_url, render_page

__all__ = ["image_url", "render_page"]
