"""Former names of `hub.records`, until `evaluation` has its own."""

from pathlib import PurePosixPath, PureWindowsPath

from .records import EVALUATION_FILE, EvaluationRecord, read_evaluation_records, write_evaluation_records

EvaluationResult = EvaluationRecord
read_evaluations = read_evaluation_records
write_evaluations = write_evaluation_records
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


def unreadable_note(count: int) -> str:
    """Say how many pictures are missing from the scores; nothing if none is."""
    if count == 0:
        return ""
    who, are = ("1 picture", "is") if count == 1 else (f"{count:,} pictures", "are")
    return f"{who} could not be read and {are} left out of the scores."


def is_absolute(path: str) -> bool:
    """Tell whether a path would be an absolute one on any system."""
    return PurePosixPath(path).is_absolute() or PureWindowsPath(path).is_absolute() or path.startswith("~")


__all__ = ["EVALUATION_FILE"]
