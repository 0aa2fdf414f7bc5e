"""From captions to what they score: the whole split, its domains, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, overload

import torch
from PIL import Image

from ..data.records import CaptionedImage
from .arguments import EvaluateArguments
from .clip_score import clip_scores
from .images import BenchmarkImages, explain_no_references
from .java import find_java, why_no_spice
from .metrics import score_captions
from .scores import CaptionScores

CONFIDENCE = 0.95
NUM_RESAMPLES = 1000
ENTIRE = "entire"  # what NoCaps calls all its domains together


@dataclass(frozen=True)
class Part:
    """The scores of a domain, or of all images.

    Args:
        name: The domain's, or "entire".
        num_images: How many were scored.
        metrics: Scores by the names that `compute_caption_metrics` gives them, and as it gives them: 0 to 1,
            CIDEr 0 to 10.
        intervals: (low, high) of each, in which it lies with a confidence of `CONFIDENCE`.
    """

    name: str
    num_images: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]


def check_scoring(args: EvaluateArguments, benchmark: BenchmarkImages) -> None:
    """Make sure, before long work, that the captions can be scored as the settings say.

    Raises:
        ValueError: if there is nothing to score them by, the scorers are not installed, Java is demanded and
            not there, or what --clip_model names is no full CLIP.
        OSError: if there is no such CLIP.
    """
    if not benchmark.has_references:
        _refuse_without_references(args, benchmark)
        return
    if find_spec("pycocoevalcap") is None:
        raise ValueError("the caption scorers are not installed: run pip install 'ituning_hf[eval]'.")
    if args.java and find_java() is None:
        raise ValueError(
            "--java true demands Java, and no working `java` is on the PATH: install a Java runtime, or "
            "leave out --java for the metrics that need none."
        )
    if args.clip_model is not None:
        clip_scores(args.clip_model, [Image.new("RGB", (8, 8))], ["a"], [["a"]], device="cpu")


def _refuse_without_references(args: EvaluateArguments, benchmark: BenchmarkImages) -> None:
    wanted = {"predictions": args.predictions, "java": args.java, "clip_model": args.clip_model}
    given = [f"--{name}" for name, value in wanted.items() if value]
    if given:
        raise ValueError(
            f"{' and '.join(given)}: split {benchmark.split!r} of {args.dataset} has no captions of people, "
            "so there is nothing to score by. With --model alone its captions are written, for the "
            f"benchmark's own server to score. {explain_no_references(args)}".rstrip()
        )


def describe_scorers(args: EvaluateArguments) -> list[str]:
    """Say what captions are going to be scored by, a line each."""
    java = None if args.java is False else find_java()
    if java is None:
        return ["BLEU, ROUGE-L and CIDEr with the Python tokenizer; METEOR and SPICE need Java"]
    reason = why_no_spice(java)
    named = "BLEU, METEOR, ROUGE-L and CIDEr" if reason else "BLEU, METEOR, ROUGE-L, CIDEr and SPICE"
    line = f"{named} with the PTB tokenizer (Java {java.version})"
    return [line, f"without SPICE: {reason}"] if reason else [line]


def score(
    args: EvaluateArguments,
    images: Sequence[CaptionedImage],
    captions: Sequence[str],
    device: torch.device,
) -> CaptionScores:
    """Score a caption for each image."""
    references = [list(image.captions) for image in images]
    scores = score_captions(captions, references, args.java)
    if args.clip_model is None:
        return scores
    return scores.with_means(
        clip_scores(args.clip_model, _Pictures(images), captions, references, device=device)
    )


def parts_of(scores: CaptionScores, images: Sequence[CaptionedImage]) -> list[Part]:
    """Return the scores of each domain, if there are any, and of all images last."""
    domains = sorted({image.domain for image in images if image.domain is not None})
    places = {name: [i for i, image in enumerate(images) if image.domain == name] for name in domains}
    parts = [_part(name, scores.part(indices)) for name, indices in places.items()]
    return [*parts, _part(ENTIRE, scores)]


def _part(name: str, scores: CaptionScores) -> Part:
    intervals = scores.confidence_intervals(CONFIDENCE, NUM_RESAMPLES)
    return Part(name, scores.num_images, scores.metrics, intervals)


class _Pictures(Sequence[Any]):
    """The pictures of images, opened when they are asked for: all at once could fill the memory."""

    def __init__(self, images: Sequence[CaptionedImage]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...

    @overload
    def __getitem__(self, index: slice) -> list[Image.Image]: ...

    def __getitem__(self, index: int | slice) -> Any:
        chosen = self.images[index]
        return chosen.load() if isinstance(chosen, CaptionedImage) else [image.load() for image in chosen]
