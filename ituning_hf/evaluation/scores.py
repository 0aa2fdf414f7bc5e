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
        counts: What each image contributes where the metric is no mean: of "bleu" an array of shape
            `(images, 10)`, see `bleu_from_counts`, and of "meteor" one of shape `(images, 23)`.
    """

    metrics: dict[str, float]
    per_image: dict[str, list[float]]
    tokenizer: str
    java_version: int | None
    left_out: dict[str, str]
    counts: dict[str, np.ndarray] = field(repr=False, compare=False)

    @property
    def num_images(self) -> int:
        """How many images were scored."""
        return len(next(iter(self.per_image.values())))

    def with_means(self, per_image: Mapping[str, Sequence[float]]) -> "CaptionScores":
        """Add metrics that are means over the images, such as CLIPScore.

        Args:
            per_image: The value of each image, by the metric's name.

        Raises:
            ValueError: Not one value for each image.
        """
        values = {name: [float(value) for value in given] for name, given in per_image.items()}
        for name, given in values.items():
            if len(given) != self.num_images:
                raise ValueError(f"{name} has {len(given)} values for {self.num_images} images")
        means = {name: float(np.mean(given)) for name, given in values.items()}
        return replace(self, metrics=self.metrics | means, per_image=self.per_image | values)

    def subset(self, indices: Sequence[int]) -> dict[str, float]:
        """Score some of the images, as the NoCaps server does a domain.

        CIDEr's document frequencies stay those of all the images, so that a domain's CIDEr is the mean
        of its images' values. The server's code is not public; its published values show it. In the three
        rows of https://github.com/nocaps-org/updown-baseline (validation: 648, 2,938 and 914 images) the
        means of the domains' CIDEr, weighted by images, are 55.28, 73.28 and 55.45 where "overall" says
        55.3, 73.3 and 55.4: the same within the rounding of the four numbers, as for SPICE. Frequencies
        counted in each domain alone would part them by points: on 1,000 Flickr8k images by 3.2 where
        topics are the domains, and by 2.1 where chance is. BLEU and METEOR are computed from the counts of
        the part.

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
        weights = np.zeros(self.num_images)
        np.add.at(weights, np.asarray(indices), 1)
        return self._weighted(weights)

    def part(self, indices: Sequence[int]) -> "CaptionScores":
        """Return the scores of some of the images by themselves, scored as `subset` scores them.

        Args:
            indices: As for `subset`, like the errors.
        """
        chosen = list(indices)
        return replace(
            self,
            metrics=self.subset(chosen),
            per_image={name: [values[i] for i in chosen] for name, values in self.per_image.items()},
            counts={name: counts[chosen] for name, counts in self.counts.items()},
        )

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
        found = []
        for _ in range(num_resamples):
            drawn = generator.integers(self.num_images, size=self.num_images)
            found.append([*self._weighted(np.bincount(drawn, minlength=self.num_images)).values()])
        outside = (1 - confidence) / 2
        low, high = np.quantile(found, [outside, 1 - outside], axis=0)
        return {name: (float(low[i]), float(high[i])) for i, name in enumerate(self.metrics)}

    def _weighted(self, weights: np.ndarray) -> dict[str, float]:
        """Score the images as if each were there as often as its weight says."""
        found = {name: weights @ values / weights.sum() for name, values in self.per_image.items()}
        if "bleu" in self.counts:
            bleu = bleu_from_counts(weights @ self.counts["bleu"])
            found |= {f"bleu_{n}": score for n, score in enumerate(bleu, start=1)}
        if "meteor" in self.counts:
            found["meteor"] = meteor_from_counts(weights @ self.counts["meteor"])
        return {name: float(found[name]) for name in self.metrics}
