"""CIDEr-D as a reward: the official scorer, with the document frequencies of the training captions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from pycocoevalcap.cider.cider_scorer import CiderScorer, cook_refs, cook_test

from ..evaluation.tokenizer import tokenize_captions

# Counts as the last word of a complete caption. Without it, captions would learn to end with fragments such
# as "on a", whose n-grams occur in the references (https://arxiv.org/abs/2305.12254). The tokenizer removes
# full stops, so it is no other word.
END = "."


class CiderReward:
    """Scores captions of the training images by CIDEr-D (Vedantam et al. 2015, arXiv 1411.5726).

    The words are those of the metrics without Java, and the end of a caption counts as a word. N-grams are
    weighted by their rarity among the references of all training images. In memory are the references as
    text, and the n-grams that occur with more than one image.

    Args:
        captions: The references of each training image.
    """

    def __init__(self, captions: Sequence[Sequence[str]]) -> None:
        self.references = [_words(texts, [True] * len(texts)) for texts in captions]
        self._scorer = _CorpusScorer(self.references)

    def __call__(self, image: int, captions: Sequence[str], are_complete: Sequence[bool]) -> list[float]:
        """Score captions of an image, from 0 to 10.

        Args:
            image: The index of the image.
            captions: The captions.
            are_complete: For each caption, whether it ended with the EOS token, or was cut off.
        """
        scorer, references = self._scorer, cook_refs(self.references[image])
        scorer.ctest = [cook_test(words) for words in _words(captions, are_complete)]
        scorer.crefs = [references] * len(captions)
        return [float(score) for score in scorer.compute_cider()]


def _words(captions: Sequence[str], are_complete: Sequence[bool]) -> list[str]:
    words = tokenize_captions(captions)
    return [f"{text} {END}" if ended else text for text, ended in zip(words, are_complete, strict=True)]


class _CorpusScorer(CiderScorer):
    """The official scorer, whose document frequencies are not those of the captions that it scores."""

    document_frequency: Counter[tuple[str, ...]]

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        super().__init__()
        self._log_num_images = math.log(len(references))
        for texts in references:
            self.crefs = [cook_refs(texts)]
            self.compute_doc_freq()
        # N-grams of a single image have the weight of unknown ones. Unlike the scorer's dictionary, a Counter
        # does not store every n-gram that it is asked for.
        self.document_frequency = Counter({ngram: n for ngram, n in self.document_frequency.items() if n > 1})

    @property
    def ref_len(self) -> float:
        """The logarithm of the number of images; `compute_cider` would set it to that of the captions."""
        return self._log_num_images

    @ref_len.setter
    def ref_len(self, value: float) -> None:
        pass
