"""The configuration of the PEFT method "ituning"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from peft import PeftConfig, PeftType, TaskType

from ..utils.errors import UserError

PEFT_TYPE = "ITUNING"


@dataclass
class ITuningTunerConfig(PeftConfig):
    """Configuration of the PEFT method "ituning": adapters that attend to an image.

    [`ITuningConfig`] describes the adapter's options, which have the same names and defaults here. An option
    that is `None` takes its value from the model, in the model's own copy of the configuration,
    `model.peft_config`.

    Args:
        vision_hidden_size: The width d_v of the visual memory, which is passed as `encoder_hidden_states`:
            768 for CLIP ViT-B, 1024 for ViT-L.
        adapter_hidden_size: The bottleneck width r; half the decoder's width by default.
        adapter_num_heads: The attention heads h; the decoder's number by default.
        adapter_scale: The factor lambda on the adapter's output.
        adapter_layers: The decoder layers that have an adapter; all by default.
        adapter_dropout: Dropout probability on the adapter's output.
        vision_feature_layer: The encoder's hidden state that is the visual memory. This field and the next
            three are used when the adapter is converted to a captioner.
        vision_model_name_or_path: The encoder's Hub id or folder.
        vision_model_revision: The encoder's revision on the Hub.
        vision_model_fingerprint: The expected fingerprint of its weights.
        text_model_fingerprint: The expected fingerprint of the language model's weights, checked if the
            model was loaded from a checkpoint. Its id and revision are PEFT's own `base_model_name_or_path`
            and `revision`.

    Raises:
        UserError: if `vision_hidden_size` is not a positive integer, or the task needs another head.
            `get_peft_model` checks the other options.

    Example:
    ```python
    >>> from ituning_hf.tuner import ITuningTunerConfig
    >>> config = ITuningTunerConfig(vision_hidden_size=768, adapter_layers=[-2, -1])
    >>> config.peft_type.value, config.task_type.value
    ('ITUNING', 'CAUSAL_LM')

    ```
    """

    target_modules: ClassVar[str] = "decoder layers"  # PEFT reads it; `ITuningTuner` finds the layers itself

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
        if self.task_type not in (TaskType.CAUSAL_LM, TaskType.FEATURE_EXTRACTION, None):
            raise UserError(
                f"task_type is {TaskType(self.task_type).value!r}, expected 'CAUSAL_LM', "
                "'FEATURE_EXTRACTION' or None: the head of that task would be neither trained nor saved."
            )
        if not isinstance(self.vision_hidden_size, int) or self.vision_hidden_size < 1:
            raise UserError(
                f"vision_hidden_size is {self.vision_hidden_size!r}, expected a positive integer: the "
                "hidden_size of the vision encoder's configuration."
            )


__all__ = ["PEFT_TYPE", "ITuningTunerConfig"]
