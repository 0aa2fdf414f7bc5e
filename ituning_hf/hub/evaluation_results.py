"""What an evaluation found, as `evaluation.json` beside a captioner keeps it."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ..captioner.json_ituning import parse_json
from ..utils.files import write_text

EVALUATION_FILE = "evaluation.json"
FORMAT_VERSION = 1

# Between what may be a path in a command of any shell: also `file:///a`, `--images=/a,/b` and `--map x:/a`,
# but not the address of a page, nor a drive's colon.
_WORD_ENDS = re.compile(r"[\s=,;'\"]+|file://|(?<=\w\w):(?!//)|(?<=\b\w):(?=/)")
# In the order in which tables show them.
METRIC_NAMES = {
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "meteor": "METEOR",
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr",
    "spice": "SPICE",
    "clip_score": "CLIPScore",
    "ref_clip_score": "RefCLIPScore",
}
TOKENIZERS = {
    "PTB (Java)": "the official PTB tokenizer",
    "Python": "the package's Python tokenizer (no Java, and so neither METEOR nor SPICE)",
}


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Images that captioners are compared on.

    Args:
        dataset: The data set's name, or its id on the Hub; no path of a machine.
        split: Such as "test".
        num_images: How many there are.
        subset: A part of the split, such as NoCaps' "out-domain".
    """

    dataset: str
    split: str
    num_images: int
    subset: str | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluationResult(Benchmark):
    """What came of captioning a benchmark.

    Args:
        metrics: Scores by the names that `compute_caption_metrics` gives them, and as it gives them: 0 to 1,
            CIDEr 0 to 10.
        command: What computed them, in one line that others can repeat; without absolute paths, since it is
            shown on the model card.
        tokenizer: What split the captions into words, "PTB (Java)" or "Python"; None where that is not known.
        num_unreadable: Further images, which were left out because they could not be read.

    Raises:
        ValueError: for a value that is none of these, naming it.
    """

    metrics: dict[str, float]
    command: str
    tokenizer: str | None = None
    num_unreadable: int = 0

    def __post_init__(self) -> None:
        """Check every value."""
        for name in ("dataset", "split", "command"):
            _require_text(name, getattr(self, name))
        if self.subset is not None:
            _require_text("subset", self.subset)
        if self.tokenizer not in (None, *TOKENIZERS):
            raise ValueError(f"tokenizer is {self.tokenizer!r}, expected one of {[*TOKENIZERS]}, or None.")
        if type(self.num_images) is not int or self.num_images < 1:
            raise ValueError(f"num_images is {self.num_images!r}, expected a whole number of at least 1.")
        if type(self.num_unreadable) is not int or self.num_unreadable < 0:
            raise ValueError(f"num_unreadable is {self.num_unreadable!r}, expected a whole number.")
        _check_metrics(self.metrics)
        _refuse_paths("dataset", [self.dataset])
        _refuse_paths("command", _WORD_ENDS.split(self.command))


def read_evaluations(folder: str | os.PathLike[str]) -> list[EvaluationResult]:
    """Read what evaluations of a captioner found.

    Args:
        folder: The captioner's.

    Returns:
        The results in their order; none if there is no `evaluation.json`.

    Raises:
        ValueError: if that file is not what `write_evaluations` writes.
    """
    path = Path(folder) / EVALUATION_FILE
    if not path.exists():
        return []
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        if content["format_version"] != FORMAT_VERSION:
            raise ValueError(f"its format_version is {content['format_version']!r}, wanted {FORMAT_VERSION}")
        return [EvaluationResult(**result) for result in content["results"]]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} holds no evaluation results ({error}): remove it and evaluate again."
        ) from error


def write_evaluations(folder: str | os.PathLike[str], results: Sequence[EvaluationResult]) -> None:
    """Write what evaluations of a captioner found, in place of what was there.

    Args:
        folder: The captioner's.
        results: In the order in which the model card shows them.
    """
    content = {"format_version": FORMAT_VERSION, "results": [asdict(result) for result in results]}
    text = json.dumps(content, indent=2, ensure_ascii=False)
    write_text(Path(folder) / EVALUATION_FILE, text + "\n")


def unreadable_note(count: int) -> str:
    """Say how many pictures are missing from the scores; nothing if none is."""
    if count == 0:
        return ""
    who, are = ("1 picture", "is") if count == 1 else (f"{count:,} pictures", "are")
    return f"{who} could not be read and {are} left out of the scores."


def is_absolute(path: str) -> bool:
    """Tell whether a path would be an absolute one on any system."""
    return PurePosixPath(path).is_absolute() or PureWindowsPath(path).is_absolute() or path.startswith("~")


def _require_text(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value.strip() or "\n" in value:
        raise ValueError(f"{name} is {value!r}, expected one line of text.")


def _check_metrics(metrics: Any) -> None:
    if not isinstance(metrics, dict) or not metrics:
        raise ValueError(f"metrics is {metrics!r}, expected a score for at least one of {[*METRIC_NAMES]}.")
    for name, value in metrics.items():
        if name not in METRIC_NAMES:
            raise ValueError(f"metrics holds {name!r}, expected some of {[*METRIC_NAMES]}.")
        if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
            raise ValueError(f"metrics[{name!r}] is {value!r}, expected a finite number of at least 0.")


def _refuse_paths(name: str, words: list[str]) -> None:
    if paths := [word for word in words if is_absolute(word)]:
        raise ValueError(
            f"{name} holds {paths[0]!r}, a place on this machine, and everybody reads the model card: give a "
            "relative path, or a name."
        )
