"""The demo's page: pictures beside their captions, one HTML file over the folder of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader

if TYPE_CHECKING:
    from .story import CaptionedScene, DemoResult

TEMPLATE = "page.html.jinja"


def write_page(
    path: Path, result: DemoResult, held_out: Sequence[CaptionedScene], unseen: Sequence[CaptionedScene]
) -> None:
    """Write the page.

    Args:
        path: The HTML file; the pictures lie in "scenes" beside it.
        result: The numbers.
        held_out: Scenes of known pairs to show.
        unseen: Scenes with an unseen pair to show.
    """
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    parts = {"Scenes of known pairs": held_out, "Scenes with a pair that the adapters never saw": unseen}
    html = environment.get_template(TEMPLATE).render(result=result, parts=parts)
    path.write_text(html, encoding="utf-8")
