"""The PEFT method's configuration: the adapter's shape, and what images it was trained on."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft import PeftConfig, PeftType, TaskType

from .registration import PEFT_TYPE


@dataclass
class ITuningTunerConfig(PeftConfig):
    """Configuration of the PEFT method "ituning": adapters that attend to an image.

    The fields have the names that they have in [`ITuningConfig`]. What is left at `None` is taken from the
    model when the adapter is put into it, in the model's own copy, `model.peft_config`.

    Args:
        vision_hidden_size: Width `d_v` of the visual memory that is given as `encoder_hidden_states`: 768
            for CLIP ViT-B, 1024 for ViT-L.
        adapter_hidden_size: The bottleneck width `r`. `None` means half the decoder's width.
        adapter_num_heads: Attention heads `h`; must divide `r`. `None` means the decoder's heads.
        adapter_scale: The fixed factor lambda on the adapter's output.
        adapter_layers: The decoder layers that carry an adapter, counted from 0 at the bottom; negative
            indices count from the top. `None` means all of them.
        adapter_dropout: Dropout probability on the adapter's output while it trains.
        vision_feature_layer: Which hidden state of the encoder the visual memory is. Only recorded: it is
            given from outside. A captioner made of the adapter (`ITuningForCaptioning.from_peft`) uses it.
        vision_model_name_or_path: The encoder's place, recorded for the same purpose.
        vision_model_revision: Its revision on the Hub.
        vision_model_fingerprint: What its weights must hash to, so that no other encoder is taken.
        text_model_fingerprint: What the language model's weights must hash to; checked where the adapter is
            put into one that was loaded from a place. Its place and revision are PEFT's own
            `base_model_name_or_path` and `revision`.

    Raises:
        ValueError: for a `vision_hidden_size` that is no positive whole number. The other values are checked
            against the model, by `get_peft_model`.

    Example:
    ```python
    >>> from ituning_hf.tuner import ITuningTunerConfig
    >>> config = ITuningTunerConfig(vision_hidden_size=768, adapter_layers=[-2, -1])
    >>> config.peft_type.value, config.task_type.value
    ('ITUNING', 'CAUSAL_LM')

    ```
    """

    task_type: str | TaskType | None = field(
        default=TaskType.CAUSAL_LM, metadata={"help": "The type of task; captioning is language modelling."}
    )
    vision_hidden_size: int | None = field(
        default=None, metadata={"help": "Width of the visual memory, given as encoder_hidden_states."}
    )
    adapter_hidden_size: int | None = field(
        default=None, metadata={"help": "Width of the bottleneck; half the decoder's by default."}
    )
    adapter_num_heads: int | None = field(
        default=None, metadata={"help": "Attention heads of the adapter; the decoder's by default."}
    )
    adapter_scale: float = field(
        default=1.0, metadata={"help": "Fixed factor lambda on the adapter's output."}
    )
    adapter_layers: list[int] | None = field(
        default=None, metadata={"help": "Decoder layers that carry an adapter; all by default."}
    )
    adapter_dropout: float = field(
        default=0.0, metadata={"help": "Dropout probability on the adapter's output."}
    )
    vision_feature_layer: int = field(
        default=-1, metadata={"help": "Which hidden state of the encoder the visual memory is (recorded)."}
    )
    vision_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Where the vision encoder comes from (recorded)."}
    )
    vision_model_revision: str | None = field(
        default=None, metadata={"help": "The vision encoder's revision on the Hub (recorded)."}
    )
    vision_model_fingerprint: str | None = field(
        default=None, metadata={"help": "What the vision encoder's weights hash to (recorded)."}
    )
    text_model_fingerprint: str | None = field(
        default=None, metadata={"help": "What the language model's weights hash to (recorded)."}
    )

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        super().__post_init__()
        self.peft_type = PeftType(PEFT_TYPE)
        width = self.vision_hidden_size
        if not isinstance(width, int) or isinstance(width, bool) or width < 1:
            raise ValueError(
                f"vision_hidden_size is {width!r}, expected a positive whole number: the width of the "
                "vision encoder's output (its config.hidden_size)."
            )

    @property
    def target_modules(self) -> str:
        """The decoder's layers, as a regular expression: PEFT's word for where a method goes."""
        layers = r"\d+" if self.adapter_layers is None else "|".join(map(str, self.adapter_layers))
        return rf"(.*\.)?h\.({layers})"


__all__ = ["ITuningTunerConfig"]
