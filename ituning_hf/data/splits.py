"""Which images are trained on: by their given split, or by lot where none is given."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .records import check_captions

if TYPE_CHECKING:
    from .records import CaptionedImage
    from .rows import Row

DEFAULT_VAL_SHARE = 0.1

# By the name of a folder, a file or a value in the column `split`; `datasets` writes "validation".
SPLIT_NAMES = {"train": "train", "val": "val", "validation": "val", "test": "test"}


class MissingSplitError(ValueError):
    """A data set has no images of a split; the text says which it has."""


def missing_split(where: object, split: str, counts: Mapping[str, int]) -> MissingSplitError:
    """Return the error of a split that is not there.

    Args:
        where: The file or folder.
        split: The split.
        counts: How many images each split has that is there.
    """
    present = ", ".join(f"{name!r} ({count})" for name, count in counts.items())
    advice = f"{present}: give one of those as the split" if present else "none"
    return MissingSplitError(f"{where} has no images of split {split!r}; it has {advice}")


def parse_split(value: Any, where: str) -> str | None:
    """Read what a row says of its split.

    Args:
        value: The row's `split`; None or an empty text where it says nothing.
        where: The row, for the message.

    Raises:
        ValueError: It is no split's name.
    """
    if value is None or value == "":
        return None
    if not (isinstance(value, str) and value in SPLIT_NAMES):
        raise ValueError(f"{where}: 'split' must be train, val or test, got {value!r}")
    return SPLIT_NAMES[value]


def select_split(
    rows: Sequence[Row], split: str, where: object, seed: int, val_share: float
) -> list[CaptionedImage]:
    """Take the images of one split, in the order of the rows.

    Where no row has a split, all are "train", and a "val" is taken from it. Whether an image is in
    "val" depends on `seed` and its name alone, so that adding images never moves one to the other
    side; the only exception is that neither side is left empty.

    Args:
        rows: Of the whole data set, no two of one name.
        split: "train", "val" or "test".
        where: The file or folder that the rows came from, for messages.
        seed: Decides which images are taken for "val"; unused where the rows have splits.
        val_share: The probability with which an image is taken, between 0 and 1.

    Raises:
        MissingSplitError: There is no row of `split`.
        ValueError: Only some rows have a split, an image of it has no caption, or `val_share` is
            no share.
    """
    by_split = _group(rows, where, seed, val_share)
    if not by_split.get(split):
        raise missing_split(where, split, {name: len(rows) for name, rows in by_split.items() if rows})
    records = [row.to_record() for row in by_split[split]]
    check_captions(records, where)
    return records


def _group(rows: Sequence[Row], where: object, seed: int, val_share: float) -> dict[str, list[Row]]:
    if not 0 < val_share < 1:
        raise ValueError(f"val_share must lie between 0 and 1, got {val_share}")
    named = [row.split for row in rows if row.split is not None]
    if named:
        if len(named) < len(rows):
            raise ValueError(f"{where}: 'split' must be on every line or on none")
        return {name: [row for row in rows if row.split == name] for name in dict.fromkeys(named)}
    lots = {row.name: _draw_lot(seed, row.name) for row in rows}
    num_val = sum(lot < val_share for lot in lots.values())
    num_val = min(max(num_val, 1), len(rows) - 1)  # neither side is left empty
    val_names = set(sorted(lots, key=lots.__getitem__)[:num_val])
    return {
        "train": [row for row in rows if row.name not in val_names],
        "val": [row for row in rows if row.name in val_names],
    }


def _draw_lot(seed: int, name: str) -> float:
    """Draw a number in [0, 1) that depends on nothing else, on any machine."""
    digest = hashlib.sha256(f"{seed}/{name}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
