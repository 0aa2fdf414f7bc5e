"""The caption metrics of the COCO benchmark, computed by its official scorers."""

from collections.abc import Callable, Collection, Sequence
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np

from ..utils.errors import UserError
from .java import Java, find_java, meteor_counts, spice_scores, tokenize_with_java, why_no_spice
from .scores import METRIC_NAMES, CaptionScores, meteor_from_counts
from .tokenizer import tokenize_captions

NumberedCaptions = dict[int, list[str]]
"""The input of the official scorers: tokenized captions by image number, a list of one for predictions."""


def compute_caption_metrics(
    predictions: Sequence[str], references: Sequence[Sequence[str]], java: bool | None = None
) -> dict[str, float]:
    """Score one caption of each image against human captions.

    Args:
        predictions: A caption for each image; an empty caption scores 0.
        references: The human captions of each image, in the order of `predictions`; at least one for each
            image, not necessarily the same number for all.
        java: True requires Java. False uses the Python tokenizer and computes neither METEOR nor SPICE. None
            uses Java if it is installed.

    Returns:
        `bleu_1` to `bleu_4` and `rouge_l` (0 to 1) and `cider` (0 to 10; good captioners reach 1.2, often
        printed as 120). CIDEr weights words by their rarity among the references of all images: with one
        image every weight, and so the score, is 0. With Java also `meteor` (0 to 1), and `spice` (0 to 1) if
        its models are installed and Java is 8 to 11.

    Raises:
        TypeError: The arguments are not lists of strings.
        UserError: There are no images, the numbers of predictions and references differ, an image has no
            reference, the references contain no word, the scorers are not installed, or Java is required and
            not found.
        WorkError: A Java program failed.

    Example:
        >>> scores = compute_caption_metrics(
        ...     ["a dog runs", "two cats sleep"],
        ...     [["a dog runs on grass", "A running dog."], ["Two cats are asleep."]],
        ...     java=False,
        ... )
        >>> print(*(f"{name} {score:.3f}" for name, score in scores.items()))
        bleu_1 0.705 bleu_2 0.669 bleu_3 0.574 bleu_4 0.020 rouge_l 0.665 cider 2.849
    """
    return score_captions(predictions, references, java).metrics


def score_captions(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    java: bool | None = None,
    *,
    only: Collection[str] | None = None,
) -> CaptionScores:
    """Score captions as `compute_caption_metrics` does, and keep the values of each image.

    Args:
        predictions: A caption for each image.
        references: The human captions of each image.
        java: True requires Java, False does not use it, None uses it if it is installed.
        only: Some of "bleu", "rouge_l", "cider", "meteor" and "spice", all of which must be available; None
            computes all that are available.

    Returns:
        The metrics, their values for each image, and how they were computed.

    Raises:
        TypeError, UserError, WorkError: See `compute_caption_metrics`. Also a UserError if a metric of `only`
            is unknown or not available.
    """
    _check(predictions, references)
    require_scorers(java)
    runtime = None if java is False else find_java()
    wanted, left_out = _choose_metrics(only, runtime, java)
    tokenized_predictions, tokenized_references = _tokenize(predictions, references, runtime)
    if not any(caption for captions in tokenized_references.values() for caption in captions):
        raise UserError("the references contain no word, only spaces and punctuation; CIDEr needs one.")
    found = {
        name: scorer(tokenized_references, tokenized_predictions, runtime)
        for name, scorer in _SCORERS.items()
        if name in wanted
    }
    return CaptionScores(
        metrics={name: score for part in found.values() for name, score in part.metrics.items()},
        per_image={name: values for part in found.values() for name, values in part.per_image.items()},
        counts={name: part.counts for name, part in found.items() if part.counts is not None},
        tokenizer="Python" if runtime is None else "PTB (Java)",
        java_version=runtime and runtime.version,
        left_out=left_out,
    )


def require_scorers(java: bool | None = None) -> None:
    """Check that the official scorers are installed, and a Java runtime if `java` is True.

    Raises:
        UserError: One of them is not; the message says how to install it.
    """
    if find_spec("pycocoevalcap") is None:
        raise UserError("the caption scorers are not installed: run pip install 'ituning_hf[eval]'.")
    if java and find_java() is None:
        raise UserError(
            "Java is required (java=True, --java true), and no working `java` is on the PATH: install a Java "
            "runtime, or leave out METEOR and SPICE (java=False, --java false)."
        )


class _Found(NamedTuple):
    """The values of one metric: of the set, of each image, and the counts of each image."""

    metrics: dict[str, float]
    per_image: dict[str, list[float]]
    counts: np.ndarray | None = None


def _bleu(references: NumberedCaptions, predictions: NumberedCaptions, java: Java | None) -> _Found:
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer  # an optional dependency, like those below

    scorer = BleuScorer(n=4)
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
    return _Found(
        {f"bleu_{n}": float(score) for n, score in enumerate(scores, start=1)},
        {f"bleu_{n}": values for n, values in enumerate(by_image, start=1)},
        np.array(counts, dtype=np.float64),
    )


def _rouge_l(references: NumberedCaptions, predictions: NumberedCaptions, java: Java | None) -> _Found:
    from pycocoevalcap.rouge.rouge import Rouge

    score, by_image = Rouge().compute_score(references, predictions)
    return _Found({"rouge_l": float(score)}, {"rouge_l": by_image.tolist()})


def _cider(references: NumberedCaptions, predictions: NumberedCaptions, java: Java | None) -> _Found:
    from pycocoevalcap.cider.cider import Cider

    score, by_image = Cider().compute_score(references, predictions)
    return _Found({"cider": float(score)}, {"cider": by_image.tolist()})


def _meteor(references: NumberedCaptions, predictions: NumberedCaptions, java: Java | None) -> _Found:
    assert java is not None
    counts = meteor_counts(references, predictions, java)
    by_image = meteor_from_counts(counts).tolist()
    return _Found({"meteor": float(meteor_from_counts(counts.sum(0)))}, {"meteor": by_image}, counts)


def _spice(references: NumberedCaptions, predictions: NumberedCaptions, java: Java | None) -> _Found:
    by_image = spice_scores(references, predictions)
    return _Found({"spice": float(np.mean(by_image))}, {"spice": by_image})


_SCORERS: dict[str, Callable[[NumberedCaptions, NumberedCaptions, Java | None], _Found]] = {
    "bleu": _bleu,
    "rouge_l": _rouge_l,
    "cider": _cider,
    "meteor": _meteor,
    "spice": _spice,
}


def _choose_metrics(
    only: Collection[str] | None, runtime: Java | None, java: bool | None
) -> tuple[set[str], dict[str, str]]:
    """Return the metrics to compute, and why others are left out."""
    wanted = set(_SCORERS if only is None else only)
    if not wanted or not wanted <= set(_SCORERS):
        raise UserError(f"only is {only!r}, expected some of {[*_SCORERS]}.")
    if runtime is None:
        reason = "it needs Java, and " + ("Java was turned off" if java is False else "no Java was found")
        reasons: dict[str, str | None] = {"meteor": reason, "spice": reason}
    else:
        reasons = {"spice": why_no_spice(runtime)}
    left_out = {
        name: f"{METRIC_NAMES[name]} is left out: {reason}."
        for name, reason in reasons.items()
        if reason is not None and name in wanted
    }
    if left_out and only is not None:
        raise UserError(" ".join(left_out.values()))
    return wanted - set(left_out), left_out


def _check(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if isinstance(predictions, str) or isinstance(references, str):
        raise TypeError("predictions and references must be lists, one item for each image; got one string")
    if len(predictions) != len(references) or len(predictions) == 0:
        raise UserError(
            f"there are {len(predictions)} predictions and references for {len(references)} images; give one "
            "prediction and one list of references for each image, and at least one image."
        )
    for index, (prediction, captions) in enumerate(zip(predictions, references, strict=True)):
        if not isinstance(prediction, str):
            raise TypeError(f"predictions[{index}] must be a string, got {prediction!r}")
        if isinstance(captions, str) or not all(isinstance(caption, str) for caption in captions):
            raise TypeError(f"references[{index}] must be a list of strings, got {captions!r}")
        if len(captions) == 0:
            raise UserError(f"references[{index}] is empty; leave out images without human captions.")


def _tokenize(
    predictions: Sequence[str], references: Sequence[Sequence[str]], java: Java | None
) -> tuple[NumberedCaptions, NumberedCaptions]:
    def tokenize(captions: Sequence[str]) -> list[str]:
        return tokenize_captions(captions) if java is None else tokenize_with_java(captions, java)

    tokenized_predictions = {index: [caption] for index, caption in enumerate(tokenize(predictions))}
    flat = iter(tokenize([caption for captions in references for caption in captions]))
    tokenized_references = {
        index: [next(flat) for _ in captions] for index, captions in enumerate(references)
    }
    return tokenized_predictions, tokenized_references
