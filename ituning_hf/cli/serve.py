"""`ituning serve`: caption images over HTTP."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from ..serving.arguments import ServedCaptionersArguments, ServerArguments
from ..utils.errors import UserError
from ..utils.network import bind
from ..utils.settings import Settings, read_settings
from ..utils.terminal import quiet_transformers

_DESCRIPTION = """\
Serve captioners over HTTP: POST /caption with an image file, and the interfaces
of OpenAI (/v1/chat/completions) and Ollama (/api/generate, /api/chat). Requests
that wait are captioned in batches. Captioners with the same frozen models share
them in memory."""
_EXAMPLES = """\
examples:
  ituning serve my-captioner/best
  ituning serve day=my-captioner/best night=org/night-captioner --port 9000
  ituning serve my-captioner/best --prompt ''
  curl -F file=@dog.jpg http://127.0.0.1:8000/caption

Use --prompt '' for programs that send instructions, such as photo managers and
chat programs: a captioner would continue the instruction.

Exit code: 2 for an error in the command; 130 after Ctrl-C, 143 after SIGTERM,
both after the accepted requests are answered.
"""


@dataclass(kw_only=True)
class ServeArguments(ServerArguments, ServedCaptionersArguments, Settings):
    """The settings of `ituning serve`."""

    def __post_init__(self) -> None:
        """Check the settings, and read the key."""
        super().__post_init__()
        if self.num_beams is not None and self.num_beams > self.max_beams:
            raise UserError(
                f"--num_beams is {self.num_beams}, expected at most --max_beams, {self.max_beams}"
            )
        self.api_key = self.api_key or os.environ.get("ITUNING_API_KEY") or None


def parse_arguments(argv: Sequence[str]) -> ServeArguments:
    """Read and check the settings."""
    return read_settings(ServeArguments, argv, "ituning serve", _DESCRIPTION, _EXAMPLES)


def run(argv: Sequence[str]) -> int:
    """Serve until a signal, and return the exit code."""
    args = parse_arguments(argv)
    try:
        import uvicorn

        from ..serving.server import create_app
    except ModuleNotFoundError as error:
        raise UserError(
            f"ituning serve needs {error.name}, which is not installed: run pip install 'ituning_hf[serve]'"
        ) from error
    quiet_transformers()
    with bind(args.host, args.port) as listener:  # before the captioners are loaded
        host, port = listener.getsockname()[:2]
        if args.api_key is None and not ip_address(host).is_loopback:
            print(
                f"ituning: anyone who can reach {host} can use this server: set ITUNING_API_KEY",
                file=sys.stderr,
            )
        captioners = args.load_captioners()
        app = create_app(captioners, args)
        config = uvicorn.Config(app, log_level="warning", server_header=False)
        listener.listen()  # so that a client can connect when it reads the address
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        print(f"Serving {', '.join(captioners)} at {address} (API: {address}/docs)", flush=True)
        try:
            uvicorn.Server(config).run(sockets=[listener])
        finally:  # after a second Ctrl-C, uvicorn does not end the application's lifespan
            app.state.service.close()
    return 0
