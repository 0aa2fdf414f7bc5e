"""What was captioned so far, on disk: a killed evaluation goes on with what is left.

Each process of each try appends a line for each batch to a file of its own. The file's name tells which
evaluation it is of, so that no captions of another captioner are ever taken for this one's.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..utils.json_files import parse_json
from .errors import EvaluationError

_PATTERN = ".captions-{identity}-{unique}.jsonl"


@dataclass(frozen=True)
class CaptionedBatch:
    """What became of one batch of images.

    Args:
        number: Of the batch, in the order of the split.
        captions: The images' places in the split, each with its caption.
        unreadable: The places of those that could not be read, each with the reason.
        seconds: The captioning took, without reading the images.
    """

    number: int
    captions: list[tuple[int, str]]
    unreadable: list[tuple[int, str]]
    seconds: float


class Drafts:
    """The unfinished work of an evaluation in its folder.

    Args:
        folder: Where the report goes.
        identity: Of the evaluation, as `identify_captions` gives it.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self.identity = folder, identity

    def read(self) -> dict[int, CaptionedBatch]:
        """Return the batches that were captioned, by their number.

        Those with images that could not be read are left out: they may have been mended since.
        """
        found = {}
        for path in self._own():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    batch = _from_json(parse_json(line))
                except ValueError:  # the line that was being written when it was killed
                    continue
                if not batch.unreadable:
                    found[batch.number] = batch
        return found

    @contextmanager
    def open(self) -> Iterator[Any]:
        """Give a function that keeps a batch: what it was called with survives the process.

        Raises:
            EvaluationError: by the function, where it cannot be kept, as on a full disk.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        name = _PATTERN.format(identity=self.identity, unique=uuid.uuid4().hex[:8])
        with (self.folder / name).open("x", encoding="utf-8") as file:

            def keep(batch: CaptionedBatch) -> None:
                try:
                    file.write(json.dumps(asdict(batch)) + "\n")
                    file.flush()
                except OSError as error:
                    raise EvaluationError(
                        f"the captions could not be kept in {self.folder} ({error.strerror or error}): make "
                        "room there, and the same command goes on with what is left."
                    ) from error

            yield keep

    def exist(self) -> bool:
        """Tell whether there is any work to go on with."""
        return bool(self._own())

    def remove(self) -> None:
        """Forget the work: its report is written."""
        for path in self._own():
            path.unlink(missing_ok=True)

    def _own(self) -> list[Path]:
        return sorted(self.folder.glob(_PATTERN.format(identity=self.identity, unique="*")))


def all_drafts(folder: Path) -> list[Path]:
    """Return the unfinished work in a folder, of any evaluation."""
    return sorted(folder.glob(_PATTERN.format(identity="*", unique="*")))


def _from_json(line: dict[str, Any]) -> CaptionedBatch:
    pairs = {name: [(index, text) for index, text in line[name]] for name in ("captions", "unreadable")}
    return CaptionedBatch(line["number"], **pairs, seconds=line["seconds"])
