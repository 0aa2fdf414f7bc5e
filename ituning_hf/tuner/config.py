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

    The adapter options have the same names and defaults as in [`ITuningConfig`]. Options that are `None` are
    set from the language model in the model's copy of the configuration, `model.peft_config`.

    Args:
        vision_hidden_size: The hidden size d_v of the visual memory, which is passed as `visual_features`:
            the `hidden_size` of the vision encoder.
        adapter_hidden_size: The bottleneck width r; by default the largest multiple of h up to half the
            decoder's hidden size.
        adapter_num_heads: The number of attention heads h; by default the decoder's or, if that does not
            divide a given r, the largest smaller number that does.
        adapter_scale: The constant factor lambda on the adapter's output.
        adapter_layers: The decoder layers that have an adapter; by default all.
        adapter_dropout: Dropout probability on the adapter's output.
        vision_feature_norm: Whether each token of the visual memory is normalized; by default True.
        vision_feature_layer: The encoder's hidden state used as visual memory. This field and the next three
            are used for conversion to a captioner.
        vision_model_name_or_path: The encoder's Hub id or folder.
        vision_model_revision: The encoder's revision on the Hub.
        vision_model_fingerprint: The expected fingerprint of its weights.
        text_model_fingerprint: The expected fingerprint of the language model's weights, which is checked if
            the model was loaded from a checkpoint. Its id and revision are stored in PEFT's
            `base_model_name_or_path` and `revision`.

    Raises:
        UserError: if `vision_hidden_size` is not a positive integer, or `task_type` requires another head.
            The other options are checked by `get_peft_model`.

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
    vision_feature_norm: bool | None = None
    vision_feature_layer: int = -1
    vision_model_name_or_path: str | None = None
    vision_model_revision: str | None = None
    vision_model_fingerprint: str | None = None
    text_model_fingerprint: str | None = None

    def __post_init__(self) -> None:
        """Check the values that do not depend on a model."""
        if self.vision_feature_norm is None:
            # Saved files contain PEFT's version; those without this field are older than the norm.
            self.vision_feature_norm = self.peft_version is None
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
