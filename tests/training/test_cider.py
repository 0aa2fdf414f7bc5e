"""The reward: the official scorer's values, with the document frequencies of the training captions."""

import math
from collections import Counter

import pytest
from pycocoevalcap.cider.cider_scorer import CiderScorer

from ituning_hf.evaluation.tokenizer import tokenize_captions
from ituning_hf.training.cider import CiderReward

REFERENCES = [
    ["A dog runs on the grass.", "A brown dog is running.", "dog, running"],
    ["Two birds sit in a tree.", "Birds in a tree"],
    ["A man rides a blue bike on the street.", "The man is riding."],
    ["A dog and a man on the grass.", "a dog"],
]
CAPTIONS = [  # of each image
    ["a dog runs on the grass", "A dog, running!", "a dog on a dog on a dog", "", "an unknown word"],
    ["two birds in a tree", "a tree in a tree", "birds", "the dog", "Two birds sit in a tree."],
    ["a man rides a bike", "a man on a", "the street", "a", "a blue man rides the grass on the street"],
    ["a dog and a man", "dog", "on the grass", "the man is riding a dog", "a"],
]
COMPLETE = [True, True, False, True, False]


def words(caption: str, is_complete: bool = True) -> str:
    return tokenize_captions([caption])[0] + " ." * is_complete


def test_rewards_are_the_official_scores_if_the_document_frequencies_are():
    reward = CiderReward(REFERENCES)
    found = [reward(image, captions, COMPLETE) for image, captions in enumerate(CAPTIONS)]
    for position, is_complete in enumerate(COMPLETE):
        scorer = CiderScorer()
        for captions, references in zip(CAPTIONS, REFERENCES, strict=True):
            scorer += (words(captions[position], is_complete), [words(text) for text in references])
        _, expected = scorer.compute_score()
        assert [rewards[position] for rewards in found] == expected.tolist()


def naive_cider(caption: str, references: list[str], corpus: list[list[str]]) -> float:
    """CIDEr-D, with the document frequencies of a corpus; the texts are tokenized."""

    def ngrams(text: str, n: int) -> Counter:
        tokens = text.split()
        return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))

    def weights(text: str, n: int) -> dict:
        counts = ngrams(text, n)
        images = {g: sum(any(g in ngrams(t, n) for t in texts) for texts in corpus) for g in counts}
        return {g: count * math.log(len(corpus) / max(1, images[g])) for g, count in counts.items()}

    def norm(vector: dict) -> float:
        return math.sqrt(sum(x * x for x in vector.values()))

    total = 0.0
    for reference in references:
        penalty = math.exp(-((len(caption.split()) - len(reference.split())) ** 2) / (2 * 6**2))
        for n in (1, 2, 3, 4):
            ours, theirs = weights(caption, n), weights(reference, n)
            product = sum(min(x, theirs.get(g, 0)) * theirs.get(g, 0) for g, x in ours.items())
            total += penalty * product / ((norm(ours) * norm(theirs)) or 1)
    return 10 * total / len(references) / 4


def test_rewards_are_cider_by_its_formula():
    reward = CiderReward(REFERENCES)
    corpus = [[words(text) for text in texts] for texts in REFERENCES]
    for image in (2, 0):
        expected = [
            naive_cider(words(caption, is_complete), corpus[image], corpus)
            for caption, is_complete in zip(CAPTIONS[image], COMPLETE, strict=True)
        ]
        assert reward(image, CAPTIONS[image], COMPLETE) == pytest.approx(expected)
        assert max(expected) > 1


def test_the_end_of_a_caption_counts_as_a_word():
    captions = ["a brown dog is running", "a brown dog is running", "a brown dog is running on a"]
    complete, cut_off, fragment = CiderReward(REFERENCES)(0, captions, [True, False, True])
    assert complete > cut_off > 0
    assert complete > fragment
