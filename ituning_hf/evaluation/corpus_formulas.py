"""ROUGE-L, and how BLEU and METEOR make the value of a set of images from what each of them contributes.

The last two are no means over the images: they add up counts first. With the counts kept for each image, the
official value of any part or resample of the images costs one sum.
"""

from collections.abc import Sequence

import numpy as np

# The constants of the official scorer, which keep an empty caption from dividing by zero.
_TINY, _SMALL = 1e-15, 1e-9

_ROUGE_BETA = 1.2
_CHUNKS = 20  # the place of METEOR's number of chunks among its 23
# METEOR 1.5's parameters for English (Denkowski and Lavie 2014, https://aclanthology.org/W14-3348).
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_STAGE_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])


def bleu_from_counts(counts: np.ndarray) -> np.ndarray:
    """Compute BLEU-1 to BLEU-4 by the official formula.

    Args:
        counts: Array of shape `(..., 10)`, of one image or sums over images: the caption's n-grams of 1
            to 4 words that a reference has; all its n-grams; its words, and those of the reference
            nearest to it in length.

    Returns:
        Array of shape `(..., 4)`.
    """
    matched, total = counts[..., :4], counts[..., 4:8]
    length, reference_length = counts[..., 8:9], counts[..., 9:]
    precisions = np.cumprod((matched + _TINY) / (total + _SMALL), axis=-1)
    ratio = (length + _TINY) / (reference_length + _SMALL)
    brevity_penalty = np.exp(np.minimum(1 - 1 / ratio, 0))
    return precisions ** (1 / np.arange(1, 5)) * brevity_penalty


def read_meteor_counts(lines: Sequence[str]) -> np.ndarray:
    """Read what METEOR's program says of each image.

    Where all words are matched, in one chunk, METEOR counts no chunk, neither for the image nor in
    sums.

    Args:
        lines: 23 numbers each: words, then function words, of caption and reference; for each of the
            stages exact, stem, synonym and paraphrase the content words matched in caption and
            reference, and the function words; chunks; all words matched in caption and reference.

    Returns:
        Array of shape `(images, 23)`.

    Raises:
        ValueError: They are other than that.
    """
    counts = np.array([line.split() for line in lines], dtype=np.float64).reshape(-1, 23)
    everything = (_stages(counts).sum((-3, -2)) == counts[:, 0:2]).all(-1)
    counts[everything & (counts[:, _CHUNKS] == 1), _CHUNKS] = 0
    return counts


def meteor_from_counts(counts: np.ndarray) -> np.ndarray:
    """Compute METEOR by the formula of METEOR 1.5.

    F = P R / (alpha P + (1 - alpha) R) of precision and recall in which content words weigh delta and
    function words 1 - delta, times 1 - gamma (chunks / matched words)^beta for the order of words.

    Args:
        counts: Array of shape `(..., 23)`, of one image or sums over images; see `read_meteor_counts`.

    Returns:
        Array of shape `(...)`.
    """
    lengths, function_words = counts[..., 0:2], counts[..., 2:4]  # (..., 2): caption, reference
    weights = np.array([_DELTA, 1 - _DELTA])
    matched = np.einsum("...skt,s,k->...t", _stages(counts), _STAGE_WEIGHTS, weights)
    possible = _DELTA * (lengths - function_words) + (1 - _DELTA) * function_words
    with np.errstate(divide="ignore", invalid="ignore"):  # where nothing matches
        precision, recall = np.moveaxis(matched / possible, -1, 0)
        f_mean = 1 / ((1 - _ALPHA) / precision + _ALPHA / recall)
        fragmentation = counts[..., _CHUNKS] / counts[..., 21:23].mean(-1)
    return np.nan_to_num(f_mean * (1 - _GAMMA * fragmentation**_BETA))


def _stages(counts: np.ndarray) -> np.ndarray:
    """The matched words as an array of shape `(..., stage, content or function, caption or reference)`."""
    return counts[..., 4:20].reshape(*counts.shape[:-1], 4, 2, 2)


def rouge_l(caption: str, references: Sequence[str]) -> float:
    """Compute ROUGE-L of one image by the official formula: precision and recall of the best references.

    Args:
        caption: Tokens with a space between any two.
        references: The captions by people, likewise.
    """
    words = caption.split(" ")
    others = [reference.split(" ") for reference in references]
    common = [_longest_common_subsequence(words, other) for other in others]
    precision = max(common) / len(words)
    recall = max(length / len(other) for length, other in zip(common, others, strict=True))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + _ROUGE_BETA**2) * precision * recall / (recall + _ROUGE_BETA**2 * precision)


def _longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Count the words of the longest common subsequence, a row of the usual table at a time.

    The bits of one number are the steps of the row (Hyyrö, Bit-parallel LCS-length computation revisited,
    2004): a bit of 0 is a place where it grows.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(first)) - 1
    row = full
    for word in second:
        matched = row & places.get(word, 0)
        row = (row + matched | row - matched) & full
    return len(first) - row.bit_count()
