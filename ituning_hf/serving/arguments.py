"""The settings of the commands that serve captioners."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..inference.arguments import PrecisionArguments
from ..utils.rules import AT_LEAST_ONE, NAME, NOT_NEGATIVE, POSITIVE, TEXT, Rule
from ..utils.settings import REQUIRED, option

if TYPE_CHECKING:
    from .captioners import Captioner


PORT = Rule("0 to 65535", lambda port: 0 <= port <= 65535)
# Pillow refuses larger images.
_PIXELS = Rule("1 to 178956970", lambda pixels: 1 <= pixels <= 178_956_970)


@dataclass(kw_only=True)  # allows required fields before fields with defaults
class _ModelsArguments:
    title: ClassVar[str] = "captioner"

    models: list[str] = option(
        REQUIRED,
        "the captioners' folders or Hub ids; the first is the default. Without NAME, a captioner has the "
        "name of its folder (of the folder above for best and last), or its Hub id",
        metavar="[NAME=]MODEL...",
        positional=True,
    )
    device: str | None = option(None, "cpu, cuda, cuda:1 or mps", NAME, "the best available")


@dataclass(kw_only=True)
class ServedCaptionersArguments(PrecisionArguments, _ModelsArguments):
    """The captioners of a server or an app."""

    def load_captioners(self) -> dict[str, Captioner]:
        """Load the captioners by name; see [`load_captioners`]."""
        from .captioners import load_captioners

        return load_captioners(
            self.models, device=self.device, dtype=self.dtype, quantization=self.quantization
        )


@dataclass(kw_only=True)
class ServerArguments:
    """The address and the limits of the HTTP server."""

    title: ClassVar[str] = "server"

    host: str = option(
        "127.0.0.1", "address to listen on; 0.0.0.0 for all of this machine", NAME, metavar="ADDRESS"
    )
    port: int = option(8000, "port to listen on; 0 for any free one", PORT)
    api_key: str | None = option(
        None,
        "key that requests must send; rather set ITUNING_API_KEY, because others can see a command's options",
        NAME,
        "ITUNING_API_KEY in the environment",
        metavar="KEY",
    )
    num_beams: int | None = option(
        None, "beams of requests that do not set them", AT_LEAST_ONE, "the captioner's own, or 5"
    )
    prompt: str | None = option(
        None,
        "text that every caption begins with, instead of the requests' own; '' for none, as programs send "
        "instructions that a captioner would continue",
        TEXT,
        "the requests' own",
    )
    max_batch: int = option(16, "most images in a batch", AT_LEAST_ONE)
    max_wait_ms: float = option(10.0, "milliseconds that an idle server waits to fill a batch", NOT_NEGATIVE)
    max_queue: int = option(64, "most requests in progress; others get status 429", AT_LEAST_ONE)
    max_body_mb: float = option(20.0, "largest body of a request, in MB", POSITIVE)
    max_pixels: int = option(50_000_000, "most pixels of an image", _PIXELS)
    max_beams: int = option(10, "most beams that a request may set", AT_LEAST_ONE)
    max_new_tokens: int = option(64, "most tokens of a caption that a request may set", AT_LEAST_ONE)
    allow_url: bool = option(False, "fetch images that requests name by an http or https URL")

    @property
    def max_body_bytes(self) -> int:
        """The size of the largest body."""
        return int(self.max_body_mb * 1e6)
