"""The images of an evaluation: read, counted, and known by a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.records import CaptionedImage
from ..hub.training_record import DRAWN_SCENES
from .arguments import EvaluateArguments


@dataclass(frozen=True)
class BenchmarkImages:
    """A split of a data set.

    Args:
        dataset: The data set's name, for reports; no place on a machine.
        split: "train", "val" or "test".
        images: In the data set's order.
        ids: The number of each, by which result files know it: the data set's own, else its position.
    """

    dataset: str
    split: str
    images: list[CaptionedImage]
    ids: list[int]

    @property
    def has_references(self) -> bool:
        """Whether people's captions are at hand; those of a test split may be private."""
        return bool(self.images[0].captions)

    @property
    def domains(self) -> list[str]:
        """The parts that the benchmark is reported by, such as NoCaps' "in-domain", sorted."""
        return sorted({image.domain for image in self.images if image.domain is not None})

    def count_unreadable(self, domain: str | None, num_captioned: int) -> int:
        """Return how many images of a domain, or of all where it is None, have no caption."""
        return sum(domain in (None, image.domain) for image in self.images) - num_captioned

    def describe(self) -> str:
        """Say it in a line."""
        references = sum(len(image.captions) for image in self.images)
        with_what = f"{references:,} references" if references else "no references"
        domains = f" ({', '.join(self.domains)})" if self.domains else ""
        return f"{len(self.images):,} of {self.dataset}, {self.split}{domains}, with {with_what}"


def load_images(args: EvaluateArguments) -> BenchmarkImages:
    """Read the split that the settings name.

    Raises:
        ValueError: for a data set that cannot be read, or another number of images than expected.
        FileNotFoundError: for a data set that is not there, or whose images are not.
    """
    images = args.load_split(
        args.split, args.seed, require_captions=False, require_images=args.reads_pictures
    )
    args.check_count("expected_images", args.expected_images, images, args.seed)
    return BenchmarkImages(_name(args), args.split, images, _ids(images))


def explain_no_references(args: EvaluateArguments) -> str:
    """Say where the captions of people are that a split lacks; nothing where that is not known."""
    path = Path(args.dataset)
    if args.split != "val" or path.suffix != ".json" or not path.is_file():
        return ""
    return (
        "NoCaps' captions of its val split are in nocaps_val_4500_captions.json "
        "(https://nocaps.s3.amazonaws.com/nocaps_val_4500_captions.json): with that file as --dataset it "
        "would be scored here."
    )


def _ids(images: Sequence[CaptionedImage]) -> list[int]:
    own = [image.image_id for image in images if image.image_id is not None]
    return own if len(own) == len(images) else list(range(len(images)))


def _name(args: EvaluateArguments) -> str:
    """Return what to call the data set: the way to it on this machine is nobody else's business."""
    if args.dataset_name is not None:
        return args.dataset_name
    if args.dataset == "scenes":
        return DRAWN_SCENES
    path = Path(args.dataset)
    return path.resolve().name if path.exists() else args.dataset
