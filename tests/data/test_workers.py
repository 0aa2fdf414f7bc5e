import os
import warnings

import pytest
from torch.utils.data import DataLoader

from ituning_hf.data.workers import usable_workers


def test_no_more_workers_than_cores_are_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 4, 5}, raising=False)
    assert [usable_workers(wanted) for wanted in (0, 2, 3, 4)] == [0, 2, 3, 3]
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert usable_workers(4) == 2
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_workers(4) == 1


def test_pytorch_has_nothing_to_warn_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DataLoader([0], num_workers=usable_workers(10_000))
