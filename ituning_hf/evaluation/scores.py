"""Caption scores of a set of images, of each image, and of parts and resamples of the set.

BLEU and METEOR are not means over the images: the official formulas use counts summed over the images. With
each image's counts stored, the official value of any part or resample of the images costs one sum.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

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
"""Titles of the metrics, in the order in which tables show them."""

# BLEU: the official scorer's constants, which avoid a division by zero for an empty caption.
_TINY, _SMALL = 1e-15, 1e-9

# METEOR: its 23 counts of an image include the number of chunks at this index.
_CHUNKS = 20
# METEOR 1.5's parameters for English (Denkowski and Lavie 2014, https://aclanthology.org/W14-3348).
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_STAGE_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])


@dataclass(frozen=True, kw_only=True)
class CaptionScores:
    """The scores of the captions of a set of images.

    Args:
        per_image: Each metric's value for each image, as the official scorers compute it.
        counts: The counts of each image: for "bleu" of shape `(images, 10)`, see `bleu_from_counts`; for
            "meteor" of shape `(images, 23)`, see `read_meteor_counts`.
        tokenizer: "PTB (Java)", the official one, or "Python".
        java_version: The major version of the Java runtime; None without Java.
        left_out: For METEOR or SPICE, if not computed, a sentence that says why.
    """

    per_image: dict[str, list[float]]
    counts: dict[str, np.ndarray] = field(repr=False, compare=False)
    tokenizer: str
    java_version: int | None
    left_out: dict[str, str]

    @property
    def num_images(self) -> int:
        """The number of images."""
        return len(next(iter(self.per_image.values())))

    @cached_property
    def metrics(self) -> dict[str, float]:
        """The metrics of the set. All but BLEU and METEOR are the means over the images."""
        return self.weighted(np.ones(self.num_images))

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 95% confidence interval (low, high) of each metric."""
        return self.bootstrap()

    def part(self, indices: Sequence[int]) -> "CaptionScores":
        """Score some of the images, as the NoCaps server scores a domain.

        CIDEr's document frequencies stay those of all images, so a domain's CIDEr is the mean over its
        images. The server's code is not public; its published values show this: in
        https://github.com/nocaps-org/updown-baseline the image-weighted means of the domains' CIDEr (55.28,
        73.28, 55.45) are the "overall" values (55.3, 73.3, 55.4) within rounding.

        Args:
            indices: Indices of images; at least one.
        """
        return replace(
            self,
            per_image={name: [values[i] for i in indices] for name, values in self.per_image.items()},
            counts={name: counts[list(indices)] for name, counts in self.counts.items()},
        )

    def bootstrap(self, num_resamples: int = 1000, seed: int = 0) -> dict[str, tuple[float, float]]:
        """Estimate how much the metrics depend on the choice of images.

        The percentile bootstrap (Efron 1979, https://doi.org/10.1214/aos/1176344552) over the images. BLEU
        and METEOR of a resample follow from its summed counts; CIDEr's document frequencies stay those of all
        images.

        Args:
            num_resamples: How often images are drawn, with replacement.
            seed: Seed of the draws.

        Returns:
            The interval (low, high) that contains 95% of the resamples, for each metric.
        """
        generator = np.random.default_rng(seed)
        found = []
        for _ in range(num_resamples):
            drawn = generator.integers(self.num_images, size=self.num_images)
            found.append([*self.weighted(np.bincount(drawn, minlength=self.num_images)).values()])
        low, high = np.quantile(found, [0.025, 0.975], axis=0).tolist()
        return dict(zip(self.metrics, zip(low, high, strict=True), strict=True))

    def weighted(self, weights: np.ndarray) -> dict[str, float]:
        """Score a set in which each image occurs as often as its weight says."""
        found = {name: weights @ values / weights.sum() for name, values in self.per_image.items()}
        if "bleu" in self.counts:
            bleu = bleu_from_counts(weights @ self.counts["bleu"])
            found |= {f"bleu_{n}": score for n, score in enumerate(bleu, start=1)}
        if "meteor" in self.counts:
            found["meteor"] = meteor_from_counts(weights @ self.counts["meteor"])
        return {name: float(value) for name, value in found.items()}


def bleu_from_counts(counts: np.ndarray) -> np.ndarray:
    """Compute BLEU-1 to BLEU-4 by the official formula.

    Args:
        counts: Array of shape `(..., 10)`, of one image or summed over images: the caption's n-grams of 1 to
            4 words that a reference has (4 numbers), all its n-grams (4), its words, and the words of the
            reference closest in length.

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
    """Read the output of METEOR's SCORE command, a line for each image.

    If all words match in one chunk, METEOR counts no chunk, neither for the image nor in sums.

    Args:
        lines: 23 numbers each: words, then function words, of caption and reference; for each of the stages
            exact, stem, synonym and paraphrase the content words matched in caption and reference, and the
            function words; chunks; all words matched in caption and reference.

    Returns:
        Array of shape `(images, 23)`.
    """
    counts = np.array([line.split() for line in lines], dtype=np.float64).reshape(-1, 23)
    all_matched = (_stages(counts).sum((-3, -2)) == counts[:, 0:2]).all(-1)
    counts[all_matched & (counts[:, _CHUNKS] == 1), _CHUNKS] = 0
    return counts


def meteor_from_counts(counts: np.ndarray) -> np.ndarray:
    """Compute METEOR by the formula of METEOR 1.5.

    F = P R / (alpha P + (1 - alpha) R), where precision P and recall R weight content words by delta and
    function words by 1 - delta; times 1 - gamma (chunks / matched words)^beta, the penalty for word order.

    Args:
        counts: Array of shape `(..., 23)`, of one image or summed over images; see `read_meteor_counts`.

    Returns:
        Array of shape `(...)`.
    """
    lengths, function_words = counts[..., 0:2], counts[..., 2:4]  # (..., 2): caption, reference
    weights = np.array([_DELTA, 1 - _DELTA])
    matched = np.einsum("...skt,s,k->...t", _stages(counts), _STAGE_WEIGHTS, weights)
    possible = _DELTA * (lengths - function_words) + (1 - _DELTA) * function_words
    with np.errstate(divide="ignore", invalid="ignore"):  # if nothing matches
        precision, recall = np.moveaxis(matched / possible, -1, 0)
        f_mean = 1 / ((1 - _ALPHA) / precision + _ALPHA / recall)
        fragmentation = counts[..., _CHUNKS] / counts[..., 21:23].mean(-1)
    return np.nan_to_num(f_mean * (1 - _GAMMA * fragmentation**_BETA))


def _stages(counts: np.ndarray) -> np.ndarray:
    """Return the matched words, shape `(..., stage, content or function, caption or reference)`."""
    return counts[..., 4:20].reshape(*counts.shape[:-1], 4, 2, 2)
