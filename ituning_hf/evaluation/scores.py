"""What a set of captions scores: as a whole, image by image, in parts, and how sure that is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from .corpus_formulas import bleu_from_counts, meteor_from_counts


@dataclass(frozen=True, kw_only=True)
class CaptionScores:
    """The scores of captions, computed once.

    Args:
        metrics: The official values, as `compute_caption_metrics` returns them.
        per_image: Each metric's values image by image, as the official scorers give them. CIDEr,
            ROUGE-L and SPICE are the means of theirs; BLEU and METEOR add up counts first.
        tokenizer: "PTB (Java)", the official one, or "Python".
        java_version: The major version of the Java that ran; None without.
        left_out: Why METEOR or SPICE are not in `metrics`, a sentence each, by the metric's name.
        bleu_counts: Array of shape `(images, 10)`, what each image contributes to BLEU; see
            `bleu_from_counts`.
        meteor_counts: Array of shape `(images, 23)`, the same for METEOR; None without Java.
    """

    metrics: dict[str, float]
    per_image: dict[str, list[float]]
    tokenizer: str
    java_version: int | None
    left_out: dict[str, str]
    bleu_counts: np.ndarray = field(repr=False, compare=False)
    meteor_counts: np.ndarray | None = field(repr=False, compare=False)

    def with_means(self, per_image: Mapping[str, Sequence[float]]) -> "CaptionScores":
        """Add metrics that are means over the images, such as CLIPScore.

        Args:
            per_image: The value of each image, by the metric's name.

        Raises:
            ValueError: Not one value for each image.
        """
        values = {name: [float(value) for value in given] for name, given in per_image.items()}
        for name, given in values.items():
            if len(given) != len(self.bleu_counts):
                raise ValueError(f"{name} has {len(given)} values for {len(self.bleu_counts)} images")
        means = {name: float(np.mean(given)) for name, given in values.items()}
        return replace(self, metrics=self.metrics | means, per_image=self.per_image | values)

    def subset(self, indices: Sequence[int]) -> dict[str, float]:
        """Score some of the images, as the NoCaps server does a domain.

        CIDEr's document frequencies stay those of all the images: a domain's CIDEr is the mean of
        its images' values. The server's code is not public, but its published values show it. In the
        three rows of https://github.com/nocaps-org/updown-baseline (validation, 648, 2,938 and 914
        images, as the rows' SPICE confirms) the means of the domains' CIDEr, weighted by images,
        are 55.28, 73.28 and 55.45 where "overall" says 55.3, 73.3 and 55.4. With frequencies counted
        in each domain by itself they would be off by points: on 1,000 Flickr8k images parted by
        topic -3.2, at random +2.1 (CIDEr x 100). BLEU and METEOR are computed from the counts of the
        part.

        Args:
            indices: Places of images among the predictions.

        Returns:
            The values of the part, by the names of `metrics`.

        Raises:
            ValueError: No image.
            IndexError: There is no such image.
        """
        if len(indices) == 0:
            raise ValueError("there is no image in this part to score; leave it out")
        weights = np.zeros(len(self.bleu_counts))
        np.add.at(weights, np.asarray(indices), 1)
        return self._weighted(weights)

    def confidence_intervals(
        self, confidence: float = 0.95, num_resamples: int = 1000, seed: int = 0
    ) -> dict[str, tuple[float, float]]:
        """Estimate how much the metrics depend on which images happened to be there.

        The percentile bootstrap (Efron 1979, https://doi.org/10.1214/aos/1176344552) over images.
        Each resample is scored as `subset` scores it, BLEU and METEOR by the official formulas from
        the summed counts, so that CIDEr's document frequencies stay as they are.

        Args:
            confidence: The share of resamples inside each interval.
            num_resamples: How often the images are drawn anew, with replacement.
            seed: Of the draws.

        Returns:
            (low, high) for each of `metrics`.

        Raises:
            ValueError: `confidence` is not between 0 and 1, or `num_resamples` not at least 1.
        """
        if not 0 < confidence < 1:
            raise ValueError(f"confidence is {confidence}, expected a share between 0 and 1, such as 0.95")
        if num_resamples < 1:
            raise ValueError(f"num_resamples is {num_resamples}, expected at least 1")
        generator = np.random.default_rng(seed)
        num_images = len(self.bleu_counts)
        found = []
        for _ in range(num_resamples):
            drawn = generator.integers(num_images, size=num_images)
            found.append([*self._weighted(np.bincount(drawn, minlength=num_images)).values()])
        outside = (1 - confidence) / 2
        low, high = np.quantile(found, [outside, 1 - outside], axis=0)
        return {name: (float(low[i]), float(high[i])) for i, name in enumerate(self.metrics)}

    def _weighted(self, weights: np.ndarray) -> dict[str, float]:
        """Score the images as if each were there as often as its weight says."""
        found = {name: weights @ values / weights.sum() for name, values in self.per_image.items()}
        found |= {
            f"bleu_{n}": score for n, score in enumerate(bleu_from_counts(weights @ self.bleu_counts), 1)
        }
        if self.meteor_counts is not None:
            found["meteor"] = meteor_from_counts(weights @ self.meteor_counts)
        return {name: float(found[name]) for name in self.metrics}
