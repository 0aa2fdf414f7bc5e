"""`ituning app`: caption images in the browser."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..serving.arguments import PORT, ServedCaptionersArguments
from ..utils.errors import UserError
from ..utils.network import bind
from ..utils.rules import NAME
from ..utils.settings import Settings, option, read_settings
from ..utils.terminal import quiet_transformers

_DESCRIPTION = """\
Caption images in the browser: one image, with the parts of it that each word of
a caption attends to, or many images, with a file of their captions. Nothing is
sent to other hosts."""
_EXAMPLES = """\
examples:
  ituning app my-captioner/best
  ituning app dogs=outputs/dogs/best birds=outputs/birds/best
  ituning app my-captioner/best --host 0.0.0.0 --port 8000

With --host 0.0.0.0, everybody who can reach this computer can use the app.
Ctrl-C stops it. `ituning push --space` publishes the app on the Hub.
"""


@dataclass(kw_only=True)
class AppArguments(ServedCaptionersArguments, Settings):
    """The settings of `ituning app`."""

    title: ClassVar[str] = Settings.title

    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 for all of this machine", NAME)
    port: int = option(7860, "port to listen on; 0 for any free one", PORT)


def parse_arguments(argv: Sequence[str]) -> AppArguments:
    """Read and check the settings."""
    return read_settings(AppArguments, argv, "ituning app", _DESCRIPTION, _EXAMPLES)


def run(argv: Sequence[str]) -> int:
    """Run the app until Ctrl-C and return the exit code."""
    args = parse_arguments(argv)
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(
            "ituning app requires gradio, which is not installed: run pip install 'ituning_hf[app]'."
        ) from error
    quiet_transformers()
    from ..serving.app import launch_app

    with bind(args.host, args.port) as found:  # before the captioners are loaded
        port = found.getsockname()[1]
    app = launch_app(args.load_captioners(), host=args.host, port=port)
    print(f"The app runs at {app.local_url}. Ctrl-C stops it.", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, it removes the uploaded files
    app.block_thread()
    return 0
