"""The settings of the commands that serve captioners."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..inference.arguments import PrecisionArguments
from ..utils.rules import NAME
from ..utils.settings import REQUIRED, option

if TYPE_CHECKING:
    from .captioners import Captioner


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
