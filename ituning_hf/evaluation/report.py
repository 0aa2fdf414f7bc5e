"""The results of an evaluation, as files and as text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from ..data.columns import CaptionedImage
from ..utils.devices import library_versions
from ..utils.files import write_text
from ..utils.terminal import printable
from .arguments import EvaluateArguments
from .scores import METRIC_NAMES, CaptionScores

RESULTS_FILE = "results.json"
METRICS_FILE = "metrics.json"
IMAGES_FILE = "per_image.jsonl"
ENTIRE = "entire"  # the name that NoCaps gives to all its domains together
NUM_SAMPLES = 3  # of the captions with the highest scores, and with the lowest
MAX_REFERENCES = 5
SHOWN_CHARACTERS = 100


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The captions of a split and their scores.

    Args:
        dataset: The name of the dataset.
        split: The split.
        images: The images that have a caption.
        image_ids: Their ids in result files.
        captions: Their captions.
        unreadable: The images that could not be read.
        speed: Captions per second, the device and the number of processes; None for captions from a file.
        parts: The scores of the images of each domain, and, last and with the name `ENTIRE`, of all images;
            empty if the images have no human captions.
    """

    dataset: str
    split: str
    images: list[CaptionedImage]
    image_ids: list[int | str]
    captions: list[str]
    unreadable: list[CaptionedImage]
    speed: dict[str, Any] | None
    parts: dict[str, CaptionScores]

    @property
    def scores(self) -> CaptionScores | None:
        """The scores of all images."""
        return self.parts.get(ENTIRE)


def write_results(folder: Path, evaluation: Evaluation) -> None:
    """Write the captions in the COCO result format; remove the other files of an earlier report."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (METRICS_FILE, IMAGES_FILE):
        (folder / name).unlink(missing_ok=True)
    pairs = zip(evaluation.image_ids, evaluation.captions, strict=True)
    results = [{"image_id": image_id, "caption": caption} for image_id, caption in pairs]
    write_text(folder / RESULTS_FILE, json.dumps(results) + "\n")


def write_scores(folder: Path, evaluation: Evaluation, args: EvaluateArguments) -> None:
    """Write `per_image.jsonl`, if there are scores, and `metrics.json`."""
    scores = evaluation.scores
    if scores is not None:
        lines = [json.dumps(entry) + "\n" for entry in _image_entries(evaluation, scores)]
        write_text(folder / IMAGES_FILE, "".join(lines))
    content = {
        "dataset": evaluation.dataset,
        "split": evaluation.split,
        "num_images": len(evaluation.images),
        "unreadable": [image.name for image in evaluation.unreadable],
        "metrics": _metrics(scores) if scores else {},
        "domains": {
            name: {"num_images": part.num_images, "metrics": _metrics(part)}
            for name, part in evaluation.parts.items()
            if name != ENTIRE
        },
        "tokenizer": scores and scores.tokenizer,
        "java_version": scores and scores.java_version,
        "left_out": scores and scores.left_out,
        "speed": evaluation.speed,
        "settings": args.to_dict(),
        "versions": library_versions(),
    }
    write_text(folder / METRICS_FILE, json.dumps(content, indent=2) + "\n")


def _metrics(scores: CaptionScores) -> dict[str, Any]:
    return {
        name: {"value": value, "interval": scores.intervals[name]} for name, value in scores.metrics.items()
    }


def _image_entries(evaluation: Evaluation, scores: CaptionScores) -> Iterator[dict[str, Any]]:
    for i, (image, caption) in enumerate(zip(evaluation.images, evaluation.captions, strict=True)):
        yield {
            "image_id": evaluation.image_ids[i],
            "name": image.name,
            "domain": image.domain,
            "caption": caption,
            "references": image.captions,
            "metrics": {name: values[i] for name, values in scores.per_image.items()},
        }


def describe(evaluation: Evaluation) -> str:
    """Return the text that `ituning evaluate` prints: scores, sample captions and speed."""
    num_images = len(evaluation.images)
    lines = [f"{num_images:,} images of {evaluation.dataset}, {evaluation.split}"]
    if evaluation.unreadable:
        lines.append(f"Unreadable images, left out of the scores: {len(evaluation.unreadable):,}")
    scores = evaluation.scores
    if scores is None:
        lines += ["", "Captions:", *map(_caption_line, evaluation.images[:4], evaluation.captions)]
    else:
        java = "" if scores.java_version is None else f", Java {scores.java_version}"
        lines += [
            "",
            *_score_table(evaluation.parts),
            f"Scores x 100, as in papers. Tokenizer: {scores.tokenizer}{java}.",
            *scores.left_out.values(),
            "",
            *_ranked_captions(evaluation, scores),
        ]
    if evaluation.speed is not None:
        rate, device, num_processes = evaluation.speed.values()
        lines += ["", f"{rate:.3g} captions/s on {device}, processes: {num_processes}"]
    return "\n".join(lines)


def _score_table(parts: Mapping[str, CaptionScores]) -> list[str]:
    """Lay out scores x 100: a row for each metric, a column for each domain, the interval of all images."""
    rows = [["", *(parts if len(parts) > 1 else ["score"]), "95% interval"]]
    rows.append(["images", *(f"{part.num_images:,}" for part in parts.values()), ""])
    intervals = parts[ENTIRE].intervals
    for name, title in METRIC_NAMES.items():
        if name in intervals:
            low, high = intervals[name]
            values = [f"{100 * part.metrics[name]:.1f}" for part in parts.values()]
            rows.append([title, *values, f"{100 * low:.1f} to {100 * high:.1f}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([title.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]).rstrip()
        for title, *cells in rows
    ]


def _ranked_captions(evaluation: Evaluation, scores: CaptionScores) -> Iterator[str]:
    """Show the captions with the highest and the lowest CIDEr, each once, with human captions."""
    cider = scores.per_image["cider"]
    best, worst = extremes(cider, NUM_SAMPLES)
    for title, chosen in (("highest", best), ("lowest", worst)):
        if chosen:
            yield f"Captions with the {title} CIDEr, and human captions:"
        for i in chosen:
            image = evaluation.images[i]
            yield f"{100 * cider[i]:8.1f}" + _caption_line(image, evaluation.captions[i])
            yield from (f"{'':10}- {_shorten(text)}" for text in image.captions[:MAX_REFERENCES])


def extremes(values: Sequence[float], number: int) -> tuple[list[int], list[int]]:
    """Return the indices of the highest values and of the lowest: `number` of each at most, each once."""
    ranked = sorted(range(len(values)), key=lambda i: -values[i])
    highest = ranked[: min(number, (len(ranked) + 1) // 2)]
    return highest, ranked[max(len(highest), len(ranked) - number) :][::-1]


def _caption_line(image: CaptionedImage, caption: str) -> str:
    return f"  {printable(image.name)}: {_shorten(caption) or '(empty)'}"


def _shorten(text: str) -> str:
    return printable(shorten(text, SHOWN_CHARACTERS, placeholder=" ..."))
