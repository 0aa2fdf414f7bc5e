"""Make untrusted text safe for terminals and logs; format sizes."""

from __future__ import annotations

import re
import sys

# Control characters, which terminals interpret or which break lines; lone surrogates (undecodable bytes); and
# characters that change the direction of text. Joiners stay: emojis need them.
_COMMANDS = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)


def printable(text: str) -> str:
    r"""Escape control characters, so that any text becomes one safe line.

    Example:
    ```python
    >>> printable("dog\n\x1b[2J.jpg")
    'dog\\n\\x1b[2J.jpg'

    ```
    """
    return _COMMANDS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def quiet_transformers() -> None:
    """Turn off Transformers' warnings and progress bars in this process."""
    from transformers.utils import logging  # here, for what needs only `printable`

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def bar_interval() -> float:
    """Return the seconds between two updates of a progress bar; a log file gets one line a minute."""
    return 0.1 if sys.stderr.isatty() else 60


def format_bytes(number: int) -> str:
    """Format a number of bytes with a decimal unit: 37.3 GB are 37.3 times 10^9 bytes."""
    for factor, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{number} bytes"
