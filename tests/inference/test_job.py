"""The work of `ituning caption` that several processes share, without a captioner."""

import resource
import shutil
from pathlib import Path

import pytest
from small_models import read_lines

from ituning_hf.inference import outputs
from ituning_hf.inference.job import Batches, Job, begin_job, has_work
from ituning_hf.inference.outputs import TableFile, to_column
from ituning_hf.inference.pictures import Pictures
from ituning_hf.utils.errors import UserError, WorkError
from ituning_hf.utils.ranks import Rank

NAMES = to_column(f"{i}.png" for i in range(4))
FILE = Path("x.jsonl")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def begin(index: int = 0, count: int = 1, *, batch_size: int = 1, overwrite: bool = False) -> Job:
    output, rank = TableFile(FILE, overwrite), Rank(index, count, index)
    job = begin_job(output, NAMES, rank, {"batch_size": batch_size})
    assert job is not None
    return job


def work(job: Job, index: int = 0, count: int = 1, *, caption: str = "new") -> bool:
    """Caption the images of a process that are not done, and finish."""
    batches = Batches(Pictures([(NAMES, "")]), 1, Rank(index, count, index), job)
    with job.open_journal() as journal:
        for number in batches._numbers:
            job.record(journal, number, [[caption]])
    return job.finish()


def test_other_work_waits_for_a_process_that_works():
    job = begin()
    for batch_size in (1, 2):
        with pytest.raises(UserError, match=r"another process is doing this work .*: wait until it ends"):
            begin(batch_size=batch_size)
    job.lock.release()
    with pytest.raises(UserError, match=r"has batch_size 1, and now it is 2: .* remove .*x.jsonl.parts to"):
        begin(batch_size=2)


def test_a_process_that_begins_is_not_overtaken():
    """One of two processes finishes the work while the other, which is needed no more, begins."""
    for index in range(2):
        assert not work(begin(index, 3, overwrite=True), index, 3, caption="first")
    first, second = begin(0, 1, overwrite=True), begin(2, 3, overwrite=True)
    assert not work(first, caption="first")
    assert work(second, 2, 3, caption="again")
    assert [row["captions"] for row in read_lines(FILE)] == [["first"]] * 4
    assert [*Path().iterdir()] == [FILE]


def test_a_work_folder_that_is_removed_ends_the_work():
    job = begin()
    with job.open_journal() as journal:
        shutil.rmtree(job.folder)
        with pytest.raises(WorkError, match=r"captions cannot be written .*x.jsonl.parts was removed"):
            job.record(journal, 0, [["new"]])


def test_a_line_of_a_journal_that_is_cut_off_ends_the_work():
    job, limits = begin(), resource.getrlimit(resource.RLIMIT_FSIZE)
    with job.open_journal() as journal:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
        try:
            with pytest.raises(WorkError, match=r"captions cannot be written .the disk is full"):
                job.record(journal, 0, [["new"]])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_damaged_work_folder_is_named():
    job = begin()
    job.lock.release()
    (job.folder / "pictures.arrow").write_bytes(b"")
    with pytest.raises(UserError, match=r"x.jsonl.parts is damaged .*: remove it to begin again"):
        begin()


def test_empty_captions_are_not_written():
    for _ in range(2):
        FILE.write_text('{"image": "0.png", "captions": []}\n')
        job = begin()
        assert work(job, caption="")
        assert (job.num_written, job.num_empty) == (0, 4)
        assert read_lines(FILE) == [{"image": "0.png", "captions": []}]
        assert [*Path().iterdir()] == [FILE]


def test_a_correction_while_the_output_is_written_is_not_lost(monkeypatch):
    """Somebody saves the file when its draft is finished."""
    row = '{"image": "%s.png", "captions": ["by hand"]}\n'
    FILE.write_text(row % "other")
    edits = ["".join(row % name for name in ("other", 3))]

    def edit(path: Path) -> None:
        if path.name.endswith(".partial") and edits:
            FILE.write_text(edits.pop())

    job = begin()
    monkeypatch.setattr(outputs, "sync", edit)
    assert work(job)
    found = [(row["image"], row["captions"]) for row in read_lines(FILE)]
    expected = [("other.png", ["by hand"]), ("3.png", ["by hand"])]
    assert found == [*expected, *((f"{i}.png", ["new"]) for i in range(3))]


def test_an_output_that_cannot_be_written_to_is_refused_before_the_captioner_is_loaded():
    assert has_work(TableFile(FILE, overwrite=False), NAMES)
    assert [*Path().iterdir()] == []
    Path("no folder").touch()
    with pytest.raises(PermissionError, match=r"no folder/x.jsonl cannot be written to"):
        has_work(TableFile(Path("no folder/x.jsonl"), overwrite=False), NAMES)
