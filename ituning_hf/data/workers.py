"""The worker processes of a data loader."""

from __future__ import annotations

import gc
import os
import signal
import sys

# A closed terminal sends SIGHUP; Windows does not have it.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
)


def usable_workers(wanted: int) -> int:
    """Return the number of workers to start: at most one per core that this process may use.

    More are not faster, and PyTorch warns about them. Their number does not change the data.
    """
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS, nor on Windows
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return min(wanted, cores)


def initialize_worker(worker_id: int) -> None:
    """Set up a forked worker; `worker_init_fn` of a data loader.

    It ignores stop signals, because they may be sent to the whole process group: the parent process still
    needs the worker's images, and would report its death as an error. Garbage collections pass over the
    parent's objects: they would touch, and so copy, 110 MB of imported modules alone. The parent may be
    stopped while it receives a tensor: multiprocessing reports that by `sys.excepthook`, and it is no error.
    """
    gc.freeze()
    sys.excepthook = lambda *error: None  # errors in a worker are sent to the parent process
    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
