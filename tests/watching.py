"""Watches a process by Python's audit events: code that it runs, what it writes, what it starts and asks.

There is no way to take such a hook off again, so that it belongs into processes of their own.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {  # audit events that change the disk, and which of their arguments are places
    **dict.fromkeys(("os.mkdir", "os.rmdir", "os.remove", "os.truncate", "os.chmod", "os.utime"), (0,)),
    **dict.fromkeys(("os.rename", "os.link", "os.symlink", "shutil.move", "shutil.copyfile"), (1,)),
}
_STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pty.spawn")
_ASKS = ("socket.connect", "socket.getaddrinfo", "socket.sendto", "urllib.Request", "pickle.find_class")


class Watch:
    """Notes what happens while it is on.

    Args:
        target: The one folder that may be written to; None: nowhere.
        sources: Folders whose Python must not run.
    """

    def __init__(self, sources: list[Path]) -> None:
        self.target: Path | None = None
        self.seen: set[str] = set()
        self._sources = [str(path.resolve()) for path in sources]
        self._on = False
        sys.addaudithook(self._hook)

    @contextmanager
    def on(self, target: Path | None = None) -> Iterator[None]:
        """Watch what is done meanwhile; of the disk, only `target` may be changed."""
        self.target, self._on = target, True
        try:
            yield
        finally:
            self._on = False

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._on:
            return
        self._on = False  # what follows opens nothing, but resolving a path may raise events of its own
        try:
            if (fault := self._fault(event, arguments)) is not None:
                self.seen.add(fault)
        finally:
            self._on = True

    def _fault(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        if event in _STARTS or event in _ASKS:
            return f"{event} {arguments!r}"[:300]
        if event == "exec" and isinstance(arguments[0], CodeType):
            return self._run(arguments[0].co_filename)
        if event == "compile":
            return self._run(str(arguments[1])) or _payload(arguments[0])
        if event == "open":
            place, mode, flags = arguments
            writes = any(letter in "wax+" for letter in mode or "") or bool((flags or 0) & _WRITING)
            return self._written(event, place) if writes else None
        for position in _CHANGES.get(event, ()):
            if (fault := self._written(event, arguments[position])) is not None:
                return fault
        return None

    def _run(self, filename: str) -> str | None:
        return f"ran {filename}" if filename.startswith(tuple(self._sources)) else None

    def _written(self, event: str, place: Any) -> str | None:
        if isinstance(place, int) or str(place) == os.devnull:
            return None
        path = Path(os.fsdecode(place)).resolve()
        inside = self.target is not None and path.is_relative_to(self.target.resolve())
        return None if inside else f"{event} {path}"


def _payload(source: Any) -> str | None:
    text = source.decode(errors="replace") if isinstance(source, bytes) else str(source)
    return f"compiled {text[:80]!r}" if "run-by-a-file" in text else None
