"""The caption metrics of the COCO benchmark, computed by its official scorers."""

import logging
from collections.abc import Collection, Sequence
from importlib.util import find_spec

import numpy as np

from ..utils.errors import UserError
from .java import Java, find_java, meteor_counts, spice_scores, tokenize_with_java, why_no_spice
from .scores import METRIC_NAMES, CaptionScores, meteor_from_counts
from .tokenizer import tokenize_captions

logger = logging.getLogger(__name__)

_METRICS = ("bleu", "rouge_l", "cider", "meteor", "spice")
CIDER_NEEDS_IMAGES = "it weights words by their rarity among the captions of several images"


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
    only: str | None = None,
) -> CaptionScores:
    """Score captions as `compute_caption_metrics` does, and keep the values of each image.

    `only` names one of `_METRICS` to compute alone; if it is not available, that is a UserError.
    """
    check_captions(predictions, references)
    runtime = require_scorers(java)
    left_out = _left_out(runtime, java)
    if only in left_out:
        raise UserError(left_out[only])
    tokenized = {i: [text] for i, text in enumerate(_tokenize(predictions, runtime))}
    flat = iter(_tokenize([text for texts in references for text in texts], runtime))
    tokenized_references = {i: [next(flat) for _ in texts] for i, texts in enumerate(references)}
    if not any(text for texts in tokenized_references.values() for text in texts):
        raise UserError("the references contain no word, only spaces and punctuation; CIDEr needs one.")
    metrics = {*_METRICS} - left_out.keys() if only is None else {only}
    if len(predictions) == 1 and "cider" in metrics:
        logger.warning("CIDEr is 0 by definition for a single image: %s", CIDER_NEEDS_IMAGES)
    per_image, counts = _score_images(metrics, tokenized_references, tokenized, runtime)
    return CaptionScores(
        per_image=per_image,
        counts=counts,
        tokenizer="Python" if runtime is None else "PTB (Java)",
        java_version=runtime and runtime.version,
        left_out=left_out,
    )


def check_captions(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Check that there is a caption and at least one human caption for each image.

    Raises:
        TypeError: They are not lists of strings.
        UserError: There are no images, or captions are missing.
    """
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


def require_scorers(java: bool | None = None, needed_by: str = "scoring captions") -> Java | None:
    """Return the Java runtime to use; `java` as for `compute_caption_metrics`.

    Raises:
        UserError: The official scorers are not installed, or Java is required and not found.
    """
    if find_spec("pycocoevalcap") is None:
        raise UserError(
            f"{needed_by} needs the caption scorers, which are not installed: run pip install "
            "'ituning_hf[eval]'."
        )
    runtime = None if java is False else find_java()
    if java and runtime is None:
        raise UserError(
            "Java is required (java=True, --java true), and no working `java` is on the PATH: install a Java "
            "runtime, or leave out METEOR and SPICE (java=False, --java false)."
        )
    return runtime


def _left_out(runtime: Java | None, java: bool | None) -> dict[str, str]:
    """Return the metrics that are not available, each with a sentence that says why."""
    if runtime is None:
        reason = "it needs Java, and " + ("Java was turned off" if java is False else "no Java was found")
        reasons: dict[str, str | None] = {"meteor": reason, "spice": reason}
    else:
        reasons = {"spice": why_no_spice(runtime)}
    return {
        name: f"{METRIC_NAMES[name]} is left out: {reason}." for name, reason in reasons.items() if reason
    }


def _tokenize(captions: Sequence[str], java: Java | None) -> list[str]:
    return tokenize_captions(captions) if java is None else tokenize_with_java(captions, java)


def _score_images(
    metrics: Collection[str],
    references: dict[int, list[str]],
    predictions: dict[int, list[str]],
    java: Java | None,
) -> tuple[dict[str, list[float]], dict[str, np.ndarray]]:
    """Compute `CaptionScores.per_image` and `counts` of tokenized captions, numbered by image."""
    per_image: dict[str, list[float]] = {}
    counts: dict[str, np.ndarray] = {}
    if "bleu" in metrics:
        by_n, counts["bleu"] = _bleu(references, predictions)
        per_image |= {f"bleu_{n}": values for n, values in enumerate(by_n, start=1)}
    if "rouge_l" in metrics:
        from pycocoevalcap.rouge.rouge import Rouge  # an optional dependency, like those below

        per_image["rouge_l"] = Rouge().compute_score(references, predictions)[1].tolist()
    if "cider" in metrics:
        from pycocoevalcap.cider.cider import Cider

        per_image["cider"] = Cider().compute_score(references, predictions)[1].tolist()
    if "meteor" in metrics and java is not None:
        counts["meteor"] = meteor_counts(references, predictions, java)
        per_image["meteor"] = meteor_from_counts(counts["meteor"]).tolist()
    if "spice" in metrics:
        per_image["spice"] = spice_scores(references, predictions)
    return per_image, counts


def _bleu(
    references: dict[int, list[str]], predictions: dict[int, list[str]]
) -> tuple[list[list[float]], np.ndarray]:
    """Return BLEU-1 to BLEU-4 of each image, and the counts that `bleu_from_counts` describes."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=4)
    for image, captions in references.items():
        scorer += (predictions[image][0], captions)
    _, by_n = scorer.compute_score(option="closest", verbose=0)
    counts = [
        [
            *image["correct"],
            *image["guess"],
            image["testlen"],
            min(image["reflen"], key=lambda length: (abs(length - image["testlen"]), length)),
        ]
        for image in scorer.ctest
    ]
    return by_n, np.array(counts, dtype=np.float64)
