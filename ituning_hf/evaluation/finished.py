"""A report that an earlier call finished, as its `metrics.json` tells it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..utils.json_files import parse_json
from .report import METRICS_FILE
from .scoring import ENTIRE, Part


@dataclass(frozen=True)
class FinishedReport:
    """What an evaluation found, without the captions.

    Args:
        num_captioned: Images that have a caption.
        parts: As an `Evaluation` has them.
        scoring: How the captions were scored, as `scoring_of` gives it; None without references.
    """

    num_captioned: int
    parts: list[Part]
    scoring: dict[str, Any] | None


def read_finished(folder: Path, identity: str) -> FinishedReport | None:
    """Read the finished report of an evaluation; None if the folder holds none, or another's.

    Args:
        folder: The report's.
        identity: Of the evaluation, as `identify_report` gives it.
    """
    try:
        content = parse_json((folder / METRICS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or content.get("identity") != identity:
        return None
    num_captioned = content["benchmark"]["num_images"]
    parts = [_part(name, part["num_images"], part["metrics"]) for name, part in content["domains"].items()]
    if content["metrics"]:
        parts.append(_part(ENTIRE, num_captioned, content["metrics"]))
    return FinishedReport(num_captioned, parts, content["scoring"])


def _part(name: str, num_images: int, metrics: dict[str, Any]) -> Part:
    return Part(
        name,
        num_images,
        {metric: found["value"] for metric, found in metrics.items()},
        {metric: (found["interval"][0], found["interval"][1]) for metric, found in metrics.items()},
    )
