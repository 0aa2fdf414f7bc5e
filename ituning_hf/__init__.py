"""I-Tuning: a small trainable captioner between a frozen CLIP and a frozen GPT-2.

Importing the package makes the Auto classes of Transformers know `model_type` "ituning".
"""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from ._version import __version__
from .captioning import CaptionResult, caption, iter_captions
from .configuration_ituning import ITuningConfig
from .modeling_ituning import ITuningForCaptioning
from .processing_ituning import ITuningProcessor
from .publishing import push_captioner
from .saving import load_captioner, save_captioner

AutoConfig.register(ITuningConfig.model_type, ITuningConfig, exist_ok=True)
AutoModel.register(ITuningConfig, ITuningForCaptioning, exist_ok=True)
AutoModelForImageTextToText.register(ITuningConfig, ITuningForCaptioning, exist_ok=True)
AutoProcessor.register(ITuningConfig, ITuningProcessor, exist_ok=True)

__all__ = [
    "CaptionResult",
    "ITuningConfig",
    "ITuningForCaptioning",
    "ITuningProcessor",
    "__version__",
    "caption",
    "iter_captions",
    "load_captioner",
    "push_captioner",
    "save_captioner",
]
