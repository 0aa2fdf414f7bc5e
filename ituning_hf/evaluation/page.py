"""The page of an evaluation (`--report`): scores, pictures with captions, and a table of all images."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from ..data.columns import CaptionedImage
from ..data.images import UnreadableImageError
from ..pages import image_url, render_page
from ..pages.charts import histogram
from ..utils.errors import UserError
from ..utils.files import write_text
from .arguments import EvaluateArguments
from .report import ENTIRE, Evaluation, extremes
from .scores import METRIC_NAMES, CaptionScores

NUM_PICTURES = 8  # with the best captions, with the worst, and drawn at random
PICTURE_SIDE, ROW_SIDE = 320, 96  # in pixels
MAX_ROW_PICTURES = 2000  # a table of more images has no pictures: each takes about 4 kB


def check_page_path(path: Path, output_dir: Path) -> None:
    """Raise a UserError for a `--report` that cannot be written; its folder may be a new `--output_dir`."""
    if path.suffix.lower() != ".html" or path.is_dir():
        raise UserError(f"--report {path}: give the name of a file that ends in .html.")
    folder = path.absolute().parent
    if folder != output_dir.absolute() and not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise UserError(f"--report {path}: {folder} is not a folder that can be written to; create it.")


def write_page(path: Path, evaluation: Evaluation, args: EvaluateArguments) -> None:
    """Write the page, replacing an existing file; images that cannot be read are left out of it."""
    scores = evaluation.scores
    titles = {name: title for name, title in METRIC_NAMES.items() if scores and name in scores.per_image}
    values = scores.per_image if scores else {}
    charts = {name: histogram(title, [100 * x for x in values[name]]) for name, title in titles.items()}
    html = render_page(
        "evaluation.html.jinja",
        evaluation=evaluation,
        parts=_parts(evaluation),
        command=args.command(),
        titles=titles,
        groups=_picture_groups(evaluation, scores),
        charts=charts,
        data=_table(evaluation, titles),
    )
    write_text(path, html, errors="replace")  # a file name may not be Unicode


def thumbnail_url(image: CaptionedImage, side: int) -> str | None:
    """Return a small version of an image as a data URL, or None if the image cannot be read."""
    try:
        return image_url(image.load(), side)
    except UnreadableImageError:
        return None


def _parts(evaluation: Evaluation) -> dict[str, CaptionScores]:
    """Return the scores by the titles of their columns: all images, then each domain."""
    domains = {name: part for name, part in evaluation.parts.items() if name != ENTIRE}
    title = "all" if domains else "score"
    return {} if evaluation.scores is None else {title: evaluation.scores} | domains


def _picture_groups(evaluation: Evaluation, scores: CaptionScores | None) -> dict[str, list[dict[str, Any]]]:
    """Return the images that are shown large, by the title of their group."""
    number = len(evaluation.images)
    groups: dict[str, Iterable[int]] = {}
    if scores is not None:
        best, worst = extremes(scores.per_image["cider"], NUM_PICTURES)
        groups = {"Highest CIDEr": best, "Lowest CIDEr": worst}
    groups["Random images"] = sorted(random.Random(0).sample(range(number), min(NUM_PICTURES, number)))
    return {title: [_picture(evaluation, scores, i) for i in chosen] for title, chosen in groups.items()}


def _picture(evaluation: Evaluation, scores: CaptionScores | None, index: int) -> dict[str, Any]:
    image = evaluation.images[index]
    values = scores.per_image if scores else {}
    return {
        "url": thumbnail_url(image, PICTURE_SIDE),
        "name": image.name,
        "caption": evaluation.captions[index],
        "references": image.captions,
        "scores": [(t, f"{100 * values[n][index]:.1f}") for n, t in METRIC_NAMES.items() if n in values],
    }


def _table(evaluation: Evaluation, titles: dict[str, str]) -> dict[str, Any]:
    """Return the columns of the table, for its script."""
    images, scores, urls = evaluation.images, evaluation.scores, []
    if len(images) <= MAX_ROW_PICTURES:
        with ThreadPoolExecutor() as pool:
            urls = list(pool.map(partial(thumbnail_url, side=ROW_SIDE), images))
    return {
        "names": [image.name for image in images],
        "captions": evaluation.captions,
        "references": [image.captions for image in images],
        "domains": [image.domain for image in images],
        "pictures": urls if any(urls) else [],
        "metrics": list(titles.items()),
        "scores": {
            name: [round(100 * x, 1) for x in scores.per_image[name]] for name in titles if scores is not None
        },
    }
