"""The settings that select a saved captioner, for all commands that generate captions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..utils.rules import AT_LEAST_ONE, MODEL, NAME, one_of
from ..utils.settings import option

if TYPE_CHECKING:
    from ..captioner.modeling_ituning import ITuningForCaptioning
    from ..captioner.processing_ituning import ITuningProcessor

_DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class _SourceArguments:
    """Where a saved captioner and its frozen models are."""

    title: ClassVar[str] = "captioner"

    model: str | None = option(None, "the captioner's folder or Hub id", MODEL)
    revision: str | None = option(None, "the captioner's revision on the Hub", NAME, "the newest")
    vision_model: str | None = option(None, "the frozen vision encoder, if it has moved", MODEL, "as stored")
    text_model: str | None = option(None, "the frozen language model, if it has moved", MODEL, "as stored")


@dataclass
class PrecisionArguments:
    """The precision of a saved captioner."""

    title: ClassVar[str] = "captioner"

    dtype: str | None = option(
        None, "precision of all weights", one_of(_DTYPES), "float32 on a CPU, else as in the files"
    )
    quantization: str | None = option(
        None,
        "quantize the frozen language model's weights: faster and smaller, on a CPU",
        one_of(("int8",)),
        "none",
    )


@dataclass
class BatchArguments:
    """The size of batches."""

    title: ClassVar[str] = "captioner"

    batch_size: int = option(16, "images in a batch", AT_LEAST_ONE)


@dataclass
class CaptionerArguments(PrecisionArguments, _SourceArguments):  # the help begins with the last base class
    """A saved captioner, its precision and its generation settings."""

    title: ClassVar[str] = "captioner"

    num_beams: int | None = option(
        None, "beams for beam search; 1 is greedy search", AT_LEAST_ONE, "the captioner's own, or 5"
    )
    max_new_tokens: int | None = option(
        None, "maximum length of a caption, in tokens", AT_LEAST_ONE, "the captioner's own"
    )

    def load_captioner(
        self, device: Any, load_vision_model: bool = True
    ) -> tuple[ITuningForCaptioning, ITuningProcessor]:
        """Load the captioner and its processor; see [`load_captioner`]."""
        from .loading import load_captioner

        assert self.model is not None
        return load_captioner(
            self.model,
            device=device,
            dtype=self.dtype,
            quantization=self.quantization,
            revision=self.revision,
            vision_model=self.vision_model,
            text_model=self.text_model,
            load_vision_model=load_vision_model,
        )
