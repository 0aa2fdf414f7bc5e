"""The official scorers, one function each."""

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from .corpus_formulas import meteor_from_counts, rouge_l
from .java import Java, meteor_counts, spice

NumberedCaptions = dict[int, list[str]]
"""The scorers' form: image number to tokenized captions, one of them where it is the prediction."""


class Found(NamedTuple):
    """What a scorer found."""

    metrics: dict[str, float]
    per_image: dict[str, list[float]]
    counts: np.ndarray | None = None
    """What each image contributes, where the metric is no mean over the images."""


def _bleu(references: NumberedCaptions, predictions: NumberedCaptions, java: Java | None) -> Found:
    scorer = _official("bleu.bleu_scorer", "BleuScorer")(n=4)
    for image, captions in references.items():
        scorer += (predictions[image][0], captions)
    scores, by_image = scorer.compute_score(option="closest", verbose=0)
    counts = [
        [
            *image["correct"],
            *image["guess"],
            image["testlen"],
            min(image["reflen"], key=lambda length: (abs(length - image["testlen"]), length)),
        ]
        for image in scorer.ctest
    ]
    return Found(
        {f"bleu_{n}": float(score) for n, score in enumerate(scores, start=1)},
        {f"bleu_{n}": values for n, values in enumerate(by_image, start=1)},
        np.array(counts, dtype=np.float64),
    )


def _rouge_l(references: NumberedCaptions, predictions: NumberedCaptions, java: Java | None) -> Found:
    # Not by the official code, which takes a gigabyte and half a minute for two texts of 10,000 words.
    by_image = [rouge_l(predictions[image][0], captions) for image, captions in references.items()]
    return Found({"rouge_l": float(np.mean(by_image))}, {"rouge_l": by_image})


def _cider(references: NumberedCaptions, predictions: NumberedCaptions, java: Java | None) -> Found:
    score, by_image = _official("cider.cider", "Cider")().compute_score(references, predictions)
    return Found({"cider": float(score)}, {"cider": by_image.tolist()})


def _meteor(references: NumberedCaptions, predictions: NumberedCaptions, java: Java | None) -> Found:
    assert java is not None
    counts = meteor_counts(references, predictions, java)
    return Found(
        {"meteor": float(meteor_from_counts(counts.sum(0)))},
        {"meteor": meteor_from_counts(counts).tolist()},
        counts,
    )


def _spice(references: NumberedCaptions, predictions: NumberedCaptions, java: Java | None) -> Found:
    by_image = spice(references, predictions)
    return Found({"spice": float(np.mean(by_image))}, {"spice": by_image})


SCORERS: dict[str, Callable[[NumberedCaptions, NumberedCaptions, Java | None], Found]] = {
    "bleu": _bleu,
    "rouge_l": _rouge_l,
    "cider": _cider,
    "meteor": _meteor,
    "spice": _spice,
}


def require_scorers() -> None:
    """Find out early whether the official scorers are installed.

    Raises:
        ImportError: They are not.
    """
    _official("bleu.bleu_scorer", "BleuScorer")


def _official(module: str, name: str) -> Any:
    try:
        return getattr(import_module(f"pycocoevalcap.{module}"), name)
    except ImportError as error:
        raise ImportError(
            "the caption metrics need pycocoevalcap; install it with: pip install 'ituning_hf[eval]'"
        ) from error
