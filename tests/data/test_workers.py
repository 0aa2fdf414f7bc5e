import os

import pytest

from ituning_hf.data.workers import usable_workers


def test_at_most_one_worker_per_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 4, 5}, raising=False)
    assert [usable_workers(wanted) for wanted in (0, 2, 3, 4)] == [0, 2, 3, 3]
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert usable_workers(4) == 2
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_workers(4) == 1
