"""The processes of a data loader."""

from __future__ import annotations

import os
import signal

# SIGHUP is what a closed terminal sends; Windows has none.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
)


def usable_workers(wanted: int) -> int:
    """Return how many workers to start: no more than the cores that this process may use.

    More are no quicker, and PyTorch warns of them. What they read does not depend on their number.
    """
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS, nor on Windows
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return min(wanted, cores)


def ignore_stop_signals(worker_id: int) -> None:
    """Let a data loader's worker live on when a signal goes to the whole process group.

    The process that it works for tells it when to end; it may need the worker's images until then, and would
    take its death for an error.
    """
    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
