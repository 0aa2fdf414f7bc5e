"""Jobs in batches: the same captions as from `caption`, and independent of each other."""

import threading
from collections.abc import Iterator

import pytest
from PIL import Image

import ituning_hf
from ituning_hf.captioner.configuration_ituning import CaptionerError
from ituning_hf.serving.batching import Batcher, Job, Search
from ituning_hf.serving.captioners import Captioner

PICTURES = [Image.linear_gradient("L").rotate(30 * i).convert("RGB") for i in range(6)]
TWO_BEAMS, GREEDY = Search(2, 2, 5), Search(1, 1, 7)


class PausedBatcher(Batcher):
    """A batcher whose first job waits until `resume` is called, so that the following ones accumulate."""

    def __init__(self, first: Job, max_batch: int = 8) -> None:
        self.sizes: list[int] = []
        self._is_running, self._resumed = threading.Event(), threading.Event()
        super().__init__(max_batch, 0, self._count)
        self.submit(first)
        self._is_running.wait()

    def _count(self, size: int) -> None:
        self.sizes.append(size)
        self._is_running.set()
        self._resumed.wait()

    def resume(self) -> None:
        """Run all jobs, and end the thread."""
        self._resumed.set()
        self.close()


def job(captioner: Captioner, number: int = 0, search: Search = GREEDY, prompt: str | None = None) -> Job:
    pixels = captioner.processor(images=PICTURES[number], return_tensors="pt")["pixel_values"]
    return Job(captioner, pixels, prompt, search)


def texts(done: Job) -> list[str]:
    return [caption.text for caption in done.captions.result()]


def caption(captioner: Captioner, numbers: list[int], search: Search, prompt: list[str] | None = None):
    found = ituning_hf.caption(
        captioner.model,
        [PICTURES[i] for i in numbers],
        captioner.processor,
        prompt=prompt,
        **search._asdict(),
    )
    return [[text] if isinstance(text, str) else text for text in found]


@pytest.fixture
def day(captioners: dict[str, Captioner]) -> Captioner:
    return captioners["day"]


def test_waiting_jobs_run_in_batches(day: Captioner):
    jobs = [job(day, i, TWO_BEAMS) for i in range(6)]
    batcher = PausedBatcher(jobs[0], max_batch=3)
    for later in jobs[1:]:
        batcher.submit(later)
    assert batcher.num_waiting == 5
    batcher.resume()
    assert batcher.sizes == [1, 3, 2]
    expected = [x for part in ([0], [1, 2, 3], [4, 5]) for x in caption(day, part, TWO_BEAMS)]
    assert [texts(done) for done in jobs] == expected
    assert len({*map(str, expected)}) == 6


def test_different_settings_are_not_mixed(captioners: dict[str, Captioner]):
    day, night = captioners.values()
    kinds = [(day, GREEDY, None), (day, TWO_BEAMS, None), (night, GREEDY, None), (day, GREEDY, "a dog")]
    jobs = [job(captioner, i, search, prompt) for i in (1, 2) for captioner, search, prompt in kinds]
    batcher = PausedBatcher(job(day))
    for one in jobs:
        batcher.submit(one)
    batcher.resume()
    assert batcher.sizes == [1, 2, 2, 2, 2]
    for i, (captioner, search, prompt) in enumerate(kinds):
        expected = caption(captioner, [1, 2], search, prompt and [prompt] * 2)
        assert [texts(jobs[i]), texts(jobs[i + 4])] == expected


def test_a_failing_job_harms_no_other(day: Captioner):
    prompts = ["a", "a dog " * 40, "two birds"]
    jobs = [job(day, i, GREEDY, prompt) for i, prompt in enumerate(prompts)]
    batcher = PausedBatcher(job(day))
    for one in jobs:
        batcher.submit(one)
    batcher.resume()
    with pytest.raises(CaptionerError, match="exceed the language model's 48 positions"):
        jobs[1].captions.result()
    for i in (0, 2):
        assert [texts(jobs[i])] == caption(day, [i], GREEDY, [prompts[i]])


def test_cancelled_jobs_are_skipped(day: Captioner):
    first, *jobs = [job(day, i) for i in range(4)]
    batcher = PausedBatcher(first)
    for one in jobs:
        batcher.submit(one)
    assert jobs[1].captions.cancel()
    assert not first.captions.cancel()  # it runs
    jobs.append(job(day, 3))
    batcher.submit(jobs[3])
    assert batcher.num_waiting == 3
    batcher.resume()
    assert batcher.sizes == [1, 3]
    assert [texts(jobs[i]) for i in (0, 2, 3)] == caption(day, [1, 3, 3], GREEDY)


@pytest.fixture
def patient(day: Captioner) -> Iterator[tuple[Batcher, list[int]]]:
    """A batcher that waits for an hour, or until it has three jobs; and the sizes of its batches."""
    sizes: list[int] = []
    batcher = Batcher(3, 3600, sizes.append)
    yield batcher, sizes
    batcher.close()


def test_an_idle_batcher_waits_for_more_jobs(day: Captioner, patient: tuple[Batcher, list[int]]):
    batcher, sizes = patient
    for done in [batcher.submit(job(day, i)) for i in range(3)]:
        assert done.result()
    assert sizes == [3]
    last = [batcher.submit(job(day, i)) for i in range(2)]
    batcher.close()
    assert all(done.done() for done in last)
    assert sizes == [3, 2]
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(job(day))


def test_the_tokens_of_a_caption_are_counted(day: Captioner):
    batcher = PausedBatcher(job(day))
    cut = batcher.submit(job(day, 1, Search(1, 1, 4), "a dog"))
    eos = day.model.generation_config.eos_token_id
    batcher.resume()
    (found,) = cut.result()
    assert found.num_tokens == 4
    assert not found.is_complete
    bias = day.model.generation_config
    bias.sequence_bias = [[[eos], 100.0]]  # the caption ends at once
    try:
        batcher = PausedBatcher(ended := job(day, 1, Search(1, 1, 4), "a dog"))
        batcher.resume()
    finally:
        bias.sequence_bias = None
    assert ended.captions.result() == [("a dog", 0, True)]
