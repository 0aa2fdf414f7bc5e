import gc
import multiprocessing
import os
import signal

import pytest

from ituning_hf.data.workers import STOP_SIGNALS, initialize_worker, usable_workers


def test_at_most_one_worker_per_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 4, 5}, raising=False)
    assert [usable_workers(wanted) for wanted in (0, 2, 3, 4)] == [0, 2, 3, 3]
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert usable_workers(4) == 2
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_workers(4) == 1


def test_a_worker_ignores_stop_signals_and_does_not_collect_its_parents_objects() -> None:
    def check(worker_id: int) -> None:
        initialize_worker(worker_id)
        before = gc.get_freeze_count()
        handlers = {signal.getsignal(signum) for signum in STOP_SIGNALS}
        os._exit(0 if before > 10_000 and handlers == {signal.SIG_IGN} else 1)

    process = multiprocessing.get_context("fork").Process(target=check, args=(0,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
