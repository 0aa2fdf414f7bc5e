"""Captioning that several processes share, and that continues after a kill.

The images are cut into batches once, before the work begins. The batches, and so the captions, do not depend
on the number of processes, nor on kills. The work folder has:

    pictures.arrow      the images' names, in order
    job.json            what the captions depend on
    0-of-2.jsonl        the journal of process 0 of 2: a line for each batch that it finished

A line that a killed process did not finish is not valid JSON. Its batch is captioned again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from filelock import FileLock, Timeout

from ..captioner.modeling_ituning import ITuningForCaptioning
from ..utils.errors import UserError, WorkError
from ..utils.files import read_json, write_json
from ..utils.ranks import Rank
from .outputs import Output, Row, end_last_line, to_column, to_names
from .pictures import Pictures

_NAMES, _SETTINGS = "pictures.arrow", "job.json"

Captions = Sequence[str] | None  # None: the image cannot be read


class _Entry(NamedTuple):
    journal: Path
    start: int  # of the line, in bytes
    num_unreadable: int


class Job:
    """The captioning of the images that had no captions when the work began.

    Args:
        folder: The work folder; see `begin_job`.
        output: Where the captions go.
        copies: Work folders of the same job on other hosts.

    Attributes:
        names: The images' names, a column of bytes.
        settings: What the captions depend on.
        num_batches: The number of batches.

    Raises:
        UserError: A copy belongs to another job.
    """

    def __init__(self, folder: Path, output: Output, copies: Sequence[Path] = ()) -> None:
        self.folder, self.output, self.copies = folder, output, copies
        self.settings: dict[str, Any] = read_json(folder / _SETTINGS)
        self.names = _read_names(folder)
        self.num_batches = -(-len(self.names) // self.settings["batch_size"])
        for copy in copies:
            if read_json(copy / _SETTINGS) != self.settings or not _read_names(copy).equals(self.names):
                raise UserError(f"{copy} and {folder} are parts of different work")

    def batch(self, number: int) -> pa.Array:
        """Return the names of a batch."""
        size = self.settings["batch_size"]
        return self.names.slice(number * size, size)

    def done(self) -> dict[int, _Entry]:
        """Find the finished batches in all journals."""
        found: dict[int, _Entry] = {}
        for journal in sorted(
            path for folder in (self.folder, *self.copies) for path in folder.glob("*-of-*.jsonl")
        ):
            start = 0
            with journal.open("rb") as lines:
                for line in lines:
                    with suppress(ValueError):
                        number, captions = json.loads(line)
                        found[number] = _Entry(journal, start, captions.count(None))
                    start += len(line)
        return found

    def locate(self, pictures: Pictures, names: pa.Array) -> Pictures:
        """Return the job's images in its order.

        Args:
            pictures: The images that are selected now.
            names: Their names.
        """
        gone = self.names.filter(pc.invert(pc.is_in(self.names, value_set=names)))
        paths = to_column(os.path.join(self.folder.parent, name) for name in to_names(gone))
        names = pa.concat_arrays([names, gone])
        return Pictures([*pictures.parts, paths], pc.index_in(self.names, value_set=names).to_numpy())

    @contextmanager
    def recording(self, rank: Rank) -> Iterator[Callable[[int, Sequence[Captions]], None]]:
        """Open a process's journal, and return the function that records a batch's captions.

        Raises:
            UserError: Another process has opened it.
        """
        path = self.folder / _journal_name(rank)
        try:
            lock = FileLock(path.with_suffix(".lock")).acquire(timeout=0)
        except Timeout as error:
            raise UserError(f"another process is doing this work ({path}): wait until it ends") from error
        with lock:
            end_last_line(path)
            with path.open("ab", buffering=0) as file:  # a line is one system call

                def record(number: int, captions: Sequence[Captions]) -> None:
                    rows = zip(to_names(self.batch(number)), captions, strict=True)
                    try:
                        self.output.write_batch((name, texts) for name, texts in rows if texts is not None)
                        file.write(json.dumps([number, captions]).encode() + b"\n")
                    except (OSError, UserError) as error:
                        raise WorkError(f"captions cannot be written ({error})") from error

                yield record

    def finish(self, rank: Rank) -> bool:
        """Write the output and remove the work folders, if all processes have finished their batches.

        Returns:
            Whether they have. If so, exactly one process writes.
        """
        journals = [self.folder / _journal_name(Rank(i, rank.count, 0)) for i in range(rank.count)]
        if len(self.done()) < self.num_batches or not all(path.exists() for path in journals):
            return False  # a process that starts later must not find its images missing and begin again
        with suppress(Timeout), _lock(self.folder, timeout=0):
            if (self.folder / _SETTINGS).exists():
                self.write()
            else:  # another process has written the output
                _remove(self.folder)
        return True

    def write(self) -> None:
        """Write the output, and remove the work folders.

        Raises:
            UserError: Batches are missing.
        """
        done = self.done()
        if len(done) < self.num_batches:
            raise UserError(f"{self.num_batches - len(done):,} of {self.num_batches:,} batches are missing")

        # A process that was killed here may have written the rows already.
        missing = self.output.missing(self.names)
        if pc.any(missing).as_py():
            self.output.write_all(self._rows(done, missing))
        for folder in (self.folder, *self.copies):
            _remove(folder)

    def _rows(self, done: dict[int, _Entry], missing: pa.Array) -> Iterator[Row]:
        for number in range(self.num_batches):
            with done[number].journal.open("rb") as file:
                file.seek(done[number].start)
                captions = json.loads(file.readline())[1]
            start = number * self.settings["batch_size"]
            for i, name in enumerate(to_names(self.batch(number))):
                if captions[i] is not None and missing[start + i].as_py():
                    yield name, captions[i]


def begin_job(output: Output, names: pa.Array, settings: dict[str, Any]) -> Job | None:
    """Begin to caption the images that have no captions in an output, or continue unfinished work.

    The result is None if there is nothing to do.

    Args:
        output: The output.
        names: The images' names, without repetitions.
        settings: What the captions depend on, with `batch_size`.

    Raises:
        UserError: The unfinished work has other settings, or other images.
    """
    folder = output.work
    with _lock(folder):
        if not (folder / _SETTINGS).exists():
            todo = names.filter(output.missing(names))
            if not len(todo):
                _remove(folder)
                return None
            output.prepare()
            table = pa.table({"name": todo})
            with pa.OSFile(str(folder / _NAMES), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
            write_json(folder / _SETTINGS, settings)
        job = Job(folder, output)
    advice = f"give the same to continue, or remove {folder} to begin again"
    for name, value in settings.items():
        if job.settings.get(name) != value:
            was = job.settings.get(name)
            raise UserError(f"unfinished work has {name} {was!r}, and now it is {value!r}: {advice}")
    if not pc.any(pc.is_in(job.names, value_set=names)).as_py():
        raise UserError(f"unfinished work is on other images ({next(to_names(job.names))!r}): {advice}")
    return job


def has_work(output: Output, names: pa.Array) -> bool:
    """Return whether images have no captions in an output, or work on it is not finished."""
    return (output.work / _SETTINGS).exists() or bool(pc.any(output.missing(names)).as_py())


def share_of(names: pa.Array, rank: Rank, batch_size: int) -> pa.Array:
    """Return the names in a process's batches."""
    mine = np.arange(len(names)) // batch_size % rank.count == rank.index
    return names.filter(pa.array(mine))


def captioner_digest(model: ITuningForCaptioning) -> str:
    """Return a digest of a captioner: its adapters, backbones and generation settings."""
    digest = hashlib.sha256(model.generation_config.to_json_string().encode())
    digest.update(f"{model.config.vision_model_fingerprint} {model.config.text_model_fingerprint}".encode())
    for name, tensor in sorted(model.adapter_state_dict().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _read_names(folder: Path) -> pa.Array:
    with pa.memory_map(str(folder / _NAMES)) as file:
        return pa.ipc.open_file(file).read_all()["name"].chunk(0)


def _remove(folder: Path) -> None:
    """Remove a job's files, and its folder if nothing else is there."""
    (folder / _SETTINGS).unlink(missing_ok=True)  # first: without it, there is no job
    for pattern in (_NAMES, "*-of-*.jsonl", "*-of-*.lock", ".lock"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _journal_name(rank: Rank) -> str:
    return f"{rank.index}-of-{rank.count}.jsonl"


@contextmanager
def _lock(folder: Path, timeout: float = -1) -> Iterator[None]:
    """Make a work folder and lock it; the process that held the lock may have removed it."""
    while True:
        folder.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):
            lock = FileLock(folder / ".lock", timeout=timeout).acquire()
            break
    with lock:
        yield
