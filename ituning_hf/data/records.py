"""One captioned image, as every data set reader hands it over, and the checks they share."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..utils.terminal import printable
from .images import load_image

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)


class ImageSource(Protocol):
    """Where an image that is no file of its own comes from; it can be pickled.

    Attributes:
        num_bytes: The length of what `read` returns, known without reading it.
    """

    @property
    def num_bytes(self) -> int:
        """See above."""

    def read(self) -> bytes:
        """Return what the image is made from: of the same bytes comes the same image."""

    def load(self) -> Image.Image:
        """Make the image, upright RGB.

        Raises:
            UnreadableImageError: There is something wrong with its data.
        """


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """An image and its captions; pixels are read only when asked for.

    Args:
        name: Unique within the data set: the file's path below the image root, or the number of
            the scene or row.
        captions: At least one, cleaned by `clean_caption`, none of them empty; none only where images
            without captions were asked for.
        source: A file to decode, or whatever else the image comes from.
        image_id: The data set's own number of it, by which results are handed in; None if it has none.
        domain: "in-domain", "near-domain" or "out-domain" of NoCaps; None elsewhere.
    """

    name: str
    captions: tuple[str, ...]
    source: Path | ImageSource
    image_id: int | None = None
    domain: str | None = None

    def load(self) -> Image.Image:
        """Read the image as upright RGB.

        Raises:
            UnreadableImageError: It does not decode; see `load_image`.
        """
        if isinstance(self.source, Path):
            return load_image(self.source)
        return self.source.load()


def clean_caption(text: str) -> str:
    """Turn each run of white space, line breaks included, into one space, and strip the ends.

    Half a surrogate pair, which JSON can hold and no tokenizer takes, becomes a question mark.
    """
    return " ".join(text.encode("utf-8", errors="replace").decode("utf-8").split())


def clean_captions(texts: Iterable[str]) -> tuple[str, ...]:
    """Clean each caption and leave out those in which nothing remains."""
    return tuple(cleaned for text in texts if (cleaned := clean_caption(text)))


def check_captions(records: Sequence[CaptionedImage], where: object) -> None:
    """Refuse records that have no caption left.

    Args:
        records: What a reader found.
        where: The file or folder they came from, for the message.

    Raises:
        ValueError: Once, with the number of such records and the first names.
    """
    empty = [record.name for record in records if not record.captions]
    if empty:
        raise ValueError(
            f"{where}: empty captions for {len(empty)} of {len(records)} images "
            f"({first_names(empty)}); write a caption for each, or remove them"
        )


def check_unique(records: Sequence[CaptionedImage], where: object) -> None:
    """Refuse records of which two have the same name, or the same number.

    Args:
        records: Those of one split.
        where: The file or folder they came from, for the message.

    Raises:
        ValueError: Once, with the doubled names or numbers.
    """
    ids = [record.image_id for record in records if record.image_id is not None]
    for what, values in (("names", [record.name for record in records]), ("ids", ids)):
        doubled = [str(value) for value, count in Counter(values).items() if count > 1]
        if doubled:
            raise ValueError(
                f"{where}: {len(doubled)} {what} of images stand there more than once "
                f"({first_names(doubled)}); leave each image there once, with all its captions"
            )


def check_images_exist(records: Sequence[CaptionedImage]) -> None:
    """Refuse records whose file is not there, before any time is spent on training; warn of empty files.

    An empty file is a picture that cannot be read, as others are: it is named and left out. So is a folder,
    a pipe or a device by a picture's name. Many of them are an archive that was not unpacked to its end,
    which is better known now than hours later.

    Raises:
        FileNotFoundError: Files are missing: once, with their number, the first three, and the folders that
            were looked in.
    """
    sizes = {record.source: _size(record.source) for record in records if isinstance(record.source, Path)}
    missing = [path for path, size in sizes.items() if size is None]
    empty = [path for path, size in sizes.items() if size == 0]
    of_all = f"of the split's {len(records):,} images are"
    if missing:
        wanted, absent = (Counter(path.parent for path in paths) for paths in (sizes, missing))
        folders = [f"{n:,} of {wanted[folder]:,} in {_describe(folder)}" for folder, n in absent.items()]
        raise FileNotFoundError(
            f"{len(missing):,} {of_all} missing ({first_names(missing)}): unpack them there, give "
            "--image_root, the folder that their names are relative to, or mend the names. Missing are "
            + first_names(folders)
        )
    if empty:
        logger.warning(
            "%s %s empty files or none (%s): unpack or copy them again",
            f"{len(empty):,}",
            of_all,
            first_names(empty),
        )


def _size(path: Path) -> int | None:
    """Return the bytes of a file, 0 for what is none, None where nothing is."""
    if path.is_file():
        return path.stat().st_size
    return 0 if path.exists() else None


def _describe(folder: Path) -> str:
    """Name a folder, and what of its path is not there."""
    absent = [place for place in (folder, *folder.parents) if not place.exists()]
    return f"{folder} (there is no {absent[-1].name}/ in {absent[-1].parent})" if absent else str(folder)


def first_names(names: Sequence[str | Path], count: int = 3) -> str:
    """Name the first few of many, for a message."""
    return ", ".join(printable(str(name)) for name in names[:count]) + (", ..." if len(names) > count else "")
