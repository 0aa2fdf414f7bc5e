"""Captioning that several processes share, and that continues after a kill.

The images are cut into batches once, before the work begins. The batches, and so the captions, do not depend
on the number of processes, nor on kills. The work folder has:

    pictures.arrow      the images' names, in order
    job.json            what the captions depend on
    0-of-2.jsonl        the journal of process 0 of 2: a line for each batch that it finished

A line that a killed process did not finish is not valid JSON; its batch is captioned again. A journal can be
copied to the work folder of the same job on another host: its lines have a digest of the job.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock, Timeout

from ..data.records import clean_caption
from ..utils.errors import UserError, WorkError
from ..utils.files import read_json, sync, write_json, writing_to
from ..utils.ranks import Rank
from .captioning import CaptionResult, iter_captions
from .outputs import Output, to_column, to_names
from .pictures import Pictures

_NAMES, _SETTINGS = "pictures.arrow", "job.json"
# In the order in which they are removed: without the settings, there is no job.
_FILES = (_SETTINGS, _NAMES, "*-of-*.jsonl", "*-of-*.lock", ".lock")
# Finished batches: the captions of each image, null if it cannot be read.
_FINISHED = pa.schema({"number": pa.int64(), "captions": pa.list_(pa.list_(pa.large_string()))})
_CHUNK = 10_000  # rows as Python objects

Captions = list[str] | None  # None: the image cannot be read


class Job:
    """The captioning of the images that had no captions when the work began; see `begin_job`.

    Args:
        output: Where the captions go.
        rank: This process.

    Attributes:
        lock: A file that this process locks from the beginning to the end of its work.
        names: The images' names, a column of bytes.
        settings: What the captions depend on.
        num_existing: The number of other selected images, which have captions already.
        num_new: The number of other selected images, which have none and were added during the work.
        num_written: The number of images whose captions are in the output, if this process wrote it.
        num_empty: The number of images whose captions are empty, and so are not there.

    Raises:
        UserError: The work folder is damaged.
    """

    def __init__(self, output: Output, rank: Rank) -> None:
        self.output, self.folder, self._index = output, output.work, rank.index
        self._journals = [self.folder / f"{index}-of-{rank.count}.jsonl" for index in range(rank.count)]
        self.lock = FileLock(self._journals[rank.index].with_suffix(".lock"))
        self.settings: dict[str, Any] = read_json(self.folder / _SETTINGS)
        try:
            with pa.memory_map(str(self.folder / _NAMES)) as file:
                self.names = pa.ipc.open_file(file).read_all()["name"].chunk(0)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{self.folder} is damaged ({error}): remove it to begin again") from error
        self.num_existing = self.num_new = self.num_empty = 0
        self.num_written: int | None = None
        self._size = self.settings["batch_size"]
        self._key = _digest([json.dumps(self.settings, sort_keys=True)])

    def done(self) -> pa.Table:
        """Return the finished batches in all journals, in order: the columns `number` and `captions`.

        Raises:
            UserError: A journal belongs to another job.
        """
        entries, parts = self._entries(), [_FINISHED.empty_table()]
        while chunk := list(itertools.islice(entries, 1000)):
            parts.append(pa.Table.from_pylist(chunk, _FINISHED))
        table = pa.concat_tables(parts)
        return table.take(np.unique(table["number"], return_index=True)[1])

    def _entries(self) -> Iterator[dict[str, Any]]:
        for journal in self.folder.glob("*-of-*.jsonl"):
            with journal.open("rb") as lines:
                for line in lines:
                    with suppress(json.JSONDecodeError, UnicodeDecodeError):
                        number, key, captions = json.loads(line)
                        if key != self._key:
                            raise UserError(
                                f"{journal} is of other images or settings than {self.folder}: remove it"
                            )
                        yield {"number": number, "captions": captions}

    def locate(self, pictures: Pictures, names: pa.Array) -> Pictures:
        """Return the job's images in its order.

        Args:
            pictures: The images that are selected now.
            names: Their names.
        """
        gone = self.names.filter(pc.invert(pc.is_in(self.names, value_set=names)))
        paths = to_column(os.path.join(self.folder.parent, name) for name in to_names(gone))
        indices = pc.index_in(self.names, value_set=pa.concat_arrays([names, gone])).to_numpy()
        return Pictures([*pictures.parts, (paths, "")], indices)

    def open_journal(self) -> FileIO:
        """Open this process's journal."""
        return FileIO(self._journals[self._index], "ab")  # unbuffered: a line is one system call

    def record(self, journal: FileIO, number: int, captions: list[Captions]) -> None:
        """Record the captions of each image in a batch; raise WorkError if they cannot be written."""
        names = to_names(self.names.slice(number * self._size, self._size))
        rows = ((name, texts) for name, texts in zip(names, captions, strict=True) if texts is not None)
        # The line break first: a kill may have cut off the previous line.
        line = f"\n{json.dumps([number, self._key, captions])}".encode()
        try:
            self.output.write_batch(rows)
            if journal.write(line) < len(line) or os.fstat(journal.fileno()).st_nlink == 0:
                raise UserError(f"the disk is full, or {self.folder} was removed")
        except (OSError, UserError) as error:
            raise WorkError(f"captions cannot be written ({error})") from error

    def finish(self) -> bool:
        """Write the output and remove the work folder, if all processes have finished their batches.

        Returns:
            Whether they have. If so, exactly one process writes.
        """
        with _lock(self.output):
            self.lock.release()
            if (self.folder / _SETTINGS).exists():  # no other process has written the output
                done = self.done()
                # A process that has not begun would begin the same work again if it did not find the folder.
                all_begun = all(path.exists() for path in self._journals)
                in_use = _is_any_locked(self.folder.glob("*-of-*.lock"))
                if len(done) * self._size < len(self.names) or in_use or not all_begun:
                    return False
                self._write(pc.list_flatten(done["captions"]))
            _remove(self.folder)
        return True

    def _write(self, captions: pa.ChunkedArray) -> None:
        """Write the captions that are not empty, of images that still have none."""
        texts = pc.binary_join(captions, pa.scalar("", pa.large_string()))
        has_text = pc.fill_null(pc.greater(pc.binary_length(texts), 0), False)
        self.num_written = pc.sum(has_text).as_py() or 0
        self.num_empty = len(captions) - captions.null_count - self.num_written
        done = False
        while not done:  # somebody may write captions at any time
            wanted = pc.and_(self.output.missing(self.names), has_text)
            table = pa.table({"name": self.names, "captions": captions}).filter(wanted)
            rows = (
                zip(to_names(batch["name"]), batch["captions"].to_pylist(), strict=True)
                for batch in table.to_batches(max_chunksize=_CHUNK)
            )
            done = self.output.write_all(table["name"], itertools.chain.from_iterable(rows))


class Batches:
    """The batches of one process: every `rank.count`-th.

    Args:
        images: The images of all processes.
        size: Images in a batch.
        rank: This process.
        job: The job that records the captions, or None.

    Attributes:
        images: This process's images that are not done.
        num_images: The number of all its images.
        num_unreadable: The number of those that could not be read, so far.
    """

    def __init__(self, images: Pictures, size: int, rank: Rank, job: Job | None) -> None:
        self.size, self.job = size, job
        mine = np.arange(rank.index, -(-len(images) // size), rank.count)
        done = job.done() if job else _FINISHED.empty_table()
        done = done.filter(pc.is_in(done["number"], value_set=pa.array(mine)))
        self._numbers = np.setdiff1d(mine, done["number"]).tolist()
        self.images = images.select(np.flatnonzero(np.isin(np.arange(len(images)) // size, self._numbers)))
        captions = pc.list_flatten(done["captions"])
        self.num_images, self.num_unreadable = len(self.images) + len(captions), captions.null_count

    def caption(
        self, model: Any, processor: Any, **options: Any
    ) -> Generator[list[CaptionResult], None, None]:
        """Caption the images, and yield each batch after it was recorded.

        Args:
            model: The captioner.
            processor: Its processor.
            **options: For `iter_captions`.

        Raises:
            WorkError: The captions cannot be written.
        """
        results = iter_captions(model, processor, self.images, batch_size=self.size, **options)
        with closing(results), self.job.open_journal() if self.job else nullcontext() as journal:
            for number in self._numbers:
                batch = list(itertools.islice(results, self.size))
                if self.job and journal:
                    captions = [None if r.error else [*map(clean_caption, r.captions)] for r in batch]
                    self.job.record(journal, number, captions)
                self.num_unreadable += sum(result.error is not None for result in batch)
                yield batch


def begin_job(output: Output, names: pa.Array, rank: Rank, settings: dict[str, Any]) -> Job | None:
    """Begin to caption the images that have no captions in an output, or continue unfinished work.

    The result is None if there is nothing to do.

    Args:
        output: The output.
        names: The images' names, without repetitions.
        rank: This process.
        settings: What the captions depend on, with `batch_size`.

    Raises:
        UserError: The unfinished work has other settings, or other images; or another process is doing it.
    """
    folder = output.work
    with _lock(output):
        is_new = not (folder / _SETTINGS).exists()
        if is_new:
            todo = names.filter(output.missing(names))
            if not len(todo):
                _remove(folder)
                return None
            table = pa.table({"name": todo})
            with pa.OSFile(str(folder / _NAMES), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
            sync(folder / _NAMES)
            write_json(folder / _SETTINGS, settings | {"images": _digest(to_names(todo))})
        job = Job(output, rank)
        was = job.settings
        problems = [
            f"has {name} {was.get(name)!r}, and now it is {value!r}"
            for name, value in settings.items()
            if was.get(name) != value
        ]
        if not pc.any(pc.is_in(job.names, value_set=names)).as_py():
            problems.append(f"is on other images ({next(to_names(job.names))!r})")
        if _is_any_locked(folder.glob("*-of-*.lock") if problems else [job.lock.lock_file]):
            raise UserError(f"another process is doing this work ({folder}): wait until it ends")
        if problems:
            advice = f"give the same to continue, or remove {folder} to begin again"
            raise UserError(f"unfinished work {problems[0]}: {advice}")
        job.lock.acquire()
    others = names.filter(pc.invert(pc.is_in(names, value_set=job.names)))
    job.num_new = 0 if is_new else output.missing(others).true_count
    job.num_existing = len(others) - job.num_new
    return job


def has_work(output: Output, names: pa.Array) -> bool:
    """Return whether images have no captions in an output, or work on it is not finished.

    Raises:
        PermissionError: There is work, and the output cannot be written to.
    """
    settings = output.work / _SETTINGS
    if not settings.exists() and not pc.any(output.missing(names)).as_py():
        return False
    with _lock(output):
        if not settings.exists():
            _remove(output.work, [".lock"])  # made only to see whether it can be made
    return True


def _digest(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(os.fsencode(text) + b"\0")
    return digest.hexdigest()[:16]


def _remove(folder: Path, patterns: Iterable[str] = _FILES) -> None:
    """Remove a job's files, and its folder if nothing else is there."""
    for pattern in patterns:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _is_any_locked(paths: Iterable[str | Path]) -> bool:
    """Return whether a process has locked one of the files."""
    with suppress(Timeout):
        for path in paths:
            FileLock(path).acquire(timeout=0).lock.release()
        return False
    return True


@contextmanager
def _lock(output: Output) -> Iterator[None]:
    """Make the work folder and lock it; the process that held the lock may have removed it."""
    with writing_to(output.title):
        while True:
            output.work.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                lock = FileLock(output.work / ".lock").acquire()
                break
    with lock:
        yield
