"""The configuration of the PEFT method "ituning"."""

from __future__ import annotations

from dataclasses import dataclass

from peft import PeftConfig, PeftType, TaskType

from ..utils.errors import UserError
from .registration import PEFT_TYPE


@dataclass
class ITuningTunerConfig(PeftConfig):
    """Configuration of the PEFT method "ituning": adapters that attend to an image.

    The fields have the names of [`ITuningConfig`]. A field that is `None` takes its value from the model, in
    the model's own copy of the configuration, `model.peft_config`.

    Args:
        vision_hidden_size: The width `d_v` of the visual memory, which is passed as `encoder_hidden_states`:
            768 for CLIP ViT-B, 1024 for ViT-L.
        adapter_hidden_size: The bottleneck width `r`. `None` means half the decoder's width.
        adapter_num_heads: The attention heads `h`; must divide `r`. `None` means the decoder's heads.
        adapter_scale: The fixed factor lambda on the adapter's output.
        adapter_layers: The decoder layers that carry an adapter, counted from 0 at the bottom; negative
            indices count from the top. `None` means all of them.
        adapter_dropout: Dropout probability on the adapter's output in training.
        vision_feature_layer: The hidden state of the encoder that is the visual memory. Only a captioner that
            is built of the adapter uses it (`ITuningForCaptioning.from_peft`).
        vision_model_name_or_path: The encoder's Hub id or folder, for the same use.
        vision_model_revision: Its revision on the Hub.
        vision_model_fingerprint: The expected fingerprint of its weights.
        text_model_fingerprint: The expected fingerprint of the language model's weights, checked if the
            model was loaded from a checkpoint. Its id and revision are PEFT's own `base_model_name_or_path`
            and `revision`.

    Raises:
        UserError: if `vision_hidden_size` is not a positive integer; `get_peft_model` checks the rest.

    Example:
    ```python
    >>> from ituning_hf.tuner import ITuningTunerConfig
    >>> config = ITuningTunerConfig(vision_hidden_size=768, adapter_layers=[-2, -1])
    >>> config.peft_type.value, config.task_type.value
    ('ITUNING', 'CAUSAL_LM')

    ```
    """

    task_type: str | TaskType | None = TaskType.CAUSAL_LM
    vision_hidden_size: int | None = None
    adapter_hidden_size: int | None = None
    adapter_num_heads: int | None = None
    adapter_scale: float = 1.0
    adapter_layers: list[int] | None = None
    adapter_dropout: float = 0.0
    vision_feature_layer: int = -1
    vision_model_name_or_path: str | None = None
    vision_model_revision: str | None = None
    vision_model_fingerprint: str | None = None
    text_model_fingerprint: str | None = None

    def __post_init__(self) -> None:
        """Check what does not depend on a model."""
        super().__post_init__()
        self.peft_type = PeftType(PEFT_TYPE)
        width = self.vision_hidden_size
        if not isinstance(width, int) or isinstance(width, bool) or width < 1:
            raise UserError(
                f"vision_hidden_size is {width!r}, expected a positive integer: the hidden_size of the "
                "vision encoder's configuration."
            )

    @property
    def target_modules(self) -> str:
        """What PEFT's messages say that the method adapts; [`ITuningTuner`] finds the layers itself."""
        return f"decoder layers {'' if self.adapter_layers is None else self.adapter_layers}".rstrip()


__all__ = ["ITuningTunerConfig"]
