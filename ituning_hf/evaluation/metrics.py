"""The caption metrics of the COCO benchmark, by its official scorers."""

from collections.abc import Collection, Sequence

from .java import Java, find_java, tokenize_with_java, why_no_spice
from .official import SCORERS, NumberedCaptions, require_scorers
from .scores import CaptionScores
from .tokenizer import tokenize_captions


def compute_caption_metrics(
    predictions: Sequence[str], references: Sequence[Sequence[str]], java: bool | None = None
) -> dict[str, float]:
    """Score one caption of each image against what people wrote about it.

    Args:
        predictions: A caption for each image; it may be empty, and then scores 0.
        references: The captions of each image by people, in the order of `predictions`; one or
            more for each, not the same number for all.
        java: True demands Java, and False does without: the Python tokenizer, and neither METEOR
            nor SPICE. None takes Java where it is found.

    Returns:
        `bleu_1` to `bleu_4` and `rouge_l` (0 to 1) and `cider` (0 to 10; good captioners reach
        1.2, often printed as 120). CIDEr weighs words by how rare they are among the images'
        references: with one image every weight, and so the score, is 0. With Java also `meteor`
        (0 to 1), and `spice` (0 to 1) where its models are installed and Java is 8 to 11.

    Raises:
        TypeError: Something other than lists of strings.
        ValueError: No images, other numbers of predictions and references, an image without
            references, or not one word in all the references.
        ImportError: The scorers are not installed.
        RuntimeError: Java is demanded and not found, or its programs fail.

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
    """Score captions as `compute_caption_metrics` does, and keep what each image contributes.

    Args:
        predictions: A caption for each image.
        references: The captions of each image by people.
        java: True demands Java, False does without, None takes it where it is found.
        only: Some of "bleu", "rouge_l", "cider", "meteor" and "spice", all of which must be had; None
            computes whatever can be had.

    Returns:
        The metrics, their values for each image, and how they were computed.

    Raises:
        TypeError: As `compute_caption_metrics`.
        ValueError: As `compute_caption_metrics`, or `only` names another metric.
        ImportError: The scorers are not installed.
        RuntimeError: Java is demanded and not found, or its programs fail, or what `only` names cannot
            be had, and why.

    Example:
        >>> scores = score_captions(
        ...     ["a dog runs", "two cats sleep"],
        ...     [["a dog runs on grass", "A running dog."], ["Two cats are asleep."]],
        ...     java=False,
        ... )
        >>> print(*(f"{value:.3f}" for value in scores.per_image["rouge_l"]))
        0.772 0.557
        >>> scores.left_out["meteor"]
        'METEOR is left out: it runs in Java, and the scorers were told to do without it.'
    """
    _check(predictions, references)
    require_scorers()
    runtime = _choose_java(java)
    wanted, left_out = _choose_metrics(only, runtime, java)
    tokenized_predictions, tokenized_references = _tokenize(predictions, references, runtime)
    if not any(caption for captions in tokenized_references.values() for caption in captions):
        raise ValueError("the references hold no word, only spaces and punctuation; CIDEr needs one")

    found = {
        name: scorer(tokenized_references, tokenized_predictions, runtime)
        for name, scorer in SCORERS.items()
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


def _choose_metrics(
    only: Collection[str] | None, runtime: Java | None, java: bool | None
) -> tuple[set[str], dict[str, str]]:
    """Return the metrics to compute, and why others are left out."""
    wanted = set(SCORERS if only is None else only)
    if not wanted or not wanted <= set(SCORERS):
        raise ValueError(f"only is {only!r}, expected some of {[*SCORERS]}")
    left_out = {name: why for name, why in _why_left_out(runtime, java).items() if name in wanted}
    if left_out and only is not None:
        raise RuntimeError(" ".join(left_out.values()))
    return wanted - set(left_out), left_out


def _why_left_out(runtime: Java | None, java: bool | None) -> dict[str, str]:
    if runtime is None:
        told = "the scorers were told to do without it"
        reason = told if java is False else "no working `java` is on the PATH"
        return {
            name: f"{title} is left out: it runs in Java, and {reason}."
            for name, title in (("meteor", "METEOR"), ("spice", "SPICE"))
        }
    reason_for_spice = why_no_spice(runtime)
    return {"spice": f"SPICE is left out: {reason_for_spice}."} if reason_for_spice else {}


def _check(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if isinstance(predictions, str) or isinstance(references, str):
        raise TypeError("predictions and references must be lists, one item for each image; got one string")
    if len(predictions) != len(references):
        raise ValueError(
            f"there are {len(predictions)} predictions and references for {len(references)} images; "
            "give one prediction and one list of references for each image"
        )
    if len(predictions) == 0:
        raise ValueError("there is no prediction to score; give at least one")
    for index, (prediction, captions) in enumerate(zip(predictions, references, strict=True)):
        if not isinstance(prediction, str):
            raise TypeError(f"predictions[{index}] must be a string, got {prediction!r}")
        if isinstance(captions, str):
            raise TypeError(f"references[{index}] must be a list of strings, got the string {captions!r}")
        if len(captions) == 0:
            raise ValueError(f"references[{index}] is empty; leave out images that nobody has described")
        for caption in captions:
            if not isinstance(caption, str):
                raise TypeError(f"references[{index}] must hold strings only, got {caption!r}")


def _choose_java(java: bool | None) -> Java | None:
    if java is False:
        return None
    runtime = find_java()
    if runtime is None and java:
        raise RuntimeError(
            "java=True, but no working `java` is on the PATH; install a Java runtime, "
            "or pass java=False for the metrics that need none"
        )
    return runtime


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
