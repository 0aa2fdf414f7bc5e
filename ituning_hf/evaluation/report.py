"""What an evaluation found, and the files and the lines that tell it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..data.records import CaptionedImage
from ..utils.environment import library_versions
from ..utils.files import write_json, write_text
from ..utils.output_folders import require_writable
from .arguments import EvaluateArguments
from .command import public_settings
from .drafts import CaptionedBatch, all_drafts
from .images import BenchmarkImages
from .scores import CaptionScores
from .scoring import CONFIDENCE, NUM_RESAMPLES, Part

RESULTS_FILE = "results.json"
METRICS_FILE = "metrics.json"
IMAGES_FILE = "per_image.jsonl"
OUTPUT_FILES = (RESULTS_FILE, METRICS_FILE, IMAGES_FILE)
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Speed:
    """How quickly the captions were made; the time that reading images took is left out.

    Args:
        captions_per_second: Of all processes together.
        seconds_of_median_batch: What the median batch took a process; the first ones warm up.
        batch_size: Images in a whole batch.
        num_processes: Processes that captioned.
        device: What each of them ran on.
        num_batches: Batches captioned.
    """

    captions_per_second: float
    seconds_of_median_batch: float
    batch_size: int
    num_processes: int
    device: str
    num_batches: int

    @classmethod
    def of(cls, batches: Sequence[CaptionedBatch], batch_size: int, num_processes: int, device: str) -> Speed:
        """Sum up batches, of which each process had its share."""
        seconds = [batch.seconds for batch in batches if batch.captions]
        rate = sum(len(batch.captions) for batch in batches) / sum(seconds) * num_processes
        return cls(rate, statistics.median(seconds), batch_size, num_processes, device, len(seconds))


@dataclass(frozen=True)
class Evaluation:
    """What came of captioning and scoring a benchmark.

    Args:
        benchmark: The images.
        places: Of the images that have a caption, in the benchmark's order.
        captions: Their captions.
        speed: How quickly they were made; None for those made elsewhere.
        scores: What they score; None without references.
        parts: The scores of each domain, and of all images last; none without references.
    """

    benchmark: BenchmarkImages
    places: list[int]
    captions: list[str]
    speed: Speed | None
    scores: CaptionScores | None
    parts: list[Part]

    @property
    def images(self) -> list[CaptionedImage]:
        """The images that have a caption."""
        return [self.benchmark.images[place] for place in self.places]

    @property
    def unreadable(self) -> list[str]:
        """The names of the others, whose picture could not be read."""
        captioned = set(self.places)
        return [image.name for i, image in enumerate(self.benchmark.images) if i not in captioned]

    @property
    def metrics(self) -> dict[str, float]:
        """The scores of all images, as `compute_caption_metrics` gives them; empty without references."""
        return {} if self.scores is None else self.scores.metrics


def check_output_dir(folder: Path, overwrite: bool, goes_on: bool) -> None:
    """Refuse a folder that cannot be written to, or that holds another evaluation.

    Args:
        folder: The folder of the report; need not be there.
        overwrite: Whether what it holds may be replaced.
        goes_on: Whether it holds the very same evaluation, finished or not.

    Raises:
        FileExistsError, PermissionError: saying what to do.
    """
    require_writable(folder)
    found = [name for name in OUTPUT_FILES if (folder / name).exists()] + [d.name for d in all_drafts(folder)]
    if found and not (overwrite or goes_on):
        raise FileExistsError(
            f"--output_dir {folder} holds another evaluation ({found[0]}): give another folder, or "
            "--overwrite."
        )


def write_results(folder: Path, benchmark: BenchmarkImages, captions: dict[int, str]) -> None:
    """Write captions in the COCO result format, in place of what an earlier evaluation left.

    Args:
        folder: The report's.
        benchmark: The images.
        captions: By the image's place.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in OUTPUT_FILES:  # never two evaluations' files side by side
        (folder / name).unlink(missing_ok=True)
    results = [
        {"image_id": benchmark.ids[place], "caption": caption} for place, caption in sorted(captions.items())
    ]
    _write(folder / RESULTS_FILE, json.dumps(results) + "\n")


def write_scores(folder: Path, evaluation: Evaluation, args: EvaluateArguments, identity: str) -> list[str]:
    """Write `per_image.jsonl` if there are scores, and `metrics.json` last: where that is, all is.

    Args:
        folder: The report's.
        evaluation: What is told.
        args: Its settings.
        identity: By which it is known again, as `identify_report` gives it.

    Returns:
        The names of all files of the report.
    """
    if evaluation.scores is not None:
        entries = _image_entries(evaluation, evaluation.scores.per_image)
        lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
        _write(folder / IMAGES_FILE, "".join(lines))
    write_json(folder / METRICS_FILE, _metrics(evaluation, args, identity))
    return [name for name in OUTPUT_FILES if (folder / name).exists()]


def _image_entries(evaluation: Evaluation, per_image: dict[str, list[float]]) -> list[dict[str, Any]]:
    return [
        {
            "image_id": evaluation.benchmark.ids[place],
            "name": image.name,
            **({} if image.domain is None else {"domain": image.domain}),
            "caption": caption,
            "references": image.captions,
            "metrics": {name: values[i] for name, values in per_image.items()},
        }
        for i, (place, image, caption) in enumerate(
            zip(evaluation.places, evaluation.images, evaluation.captions, strict=True)
        )
    ]


def _metrics(evaluation: Evaluation, args: EvaluateArguments, identity: str) -> dict[str, Any]:
    parts = evaluation.parts
    return {
        "format_version": FORMAT_VERSION,
        "identity": identity,
        "benchmark": {
            "dataset": evaluation.benchmark.dataset,
            "split": evaluation.benchmark.split,
            "num_images": len(evaluation.places),
            "unreadable": evaluation.unreadable,
        },
        "metrics": _part(parts[-1]) if parts else {},
        "domains": {
            part.name: {"num_images": part.num_images, "metrics": _part(part)} for part in parts[:-1]
        },
        "scoring": None if evaluation.scores is None else scoring_of(evaluation.scores),
        "speed": None if evaluation.speed is None else asdict(evaluation.speed),
        "settings": public_settings(args),
        "versions": library_versions(),
    }


def scoring_of(scores: CaptionScores) -> dict[str, Any]:
    """Return how captions were scored, as `metrics.json` has it."""
    return {
        "tokenizer": scores.tokenizer,
        "java_version": scores.java_version,
        "left_out": scores.left_out,
        "confidence": CONFIDENCE,
        "num_resamples": NUM_RESAMPLES,
    }


def _part(part: Part) -> dict[str, Any]:
    return {
        name: {"value": value, "interval": list(part.intervals[name])} for name, value in part.metrics.items()
    }


def _write(path: Path, text: str) -> None:
    # Half a surrogate pair, which a file's name can hold, has no place in UTF-8.
    write_text(path, text, errors="backslashreplace")
