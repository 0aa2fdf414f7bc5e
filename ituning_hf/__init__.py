"""I-Tuning: a small trainable captioner between a frozen CLIP and a frozen GPT-2.

Importing the package makes the Auto classes of Transformers know `model_type` "ituning", and PEFT the method
"ituning".
"""

import warnings

from .utils.requirements import check_requirements

check_requirements()

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from ._version import __version__
from .captioner.configuration_ituning import ITuningConfig
from .captioner.modeling_ituning import ITuningForCaptioning
from .captioner.processing_ituning import ITuningProcessor
from .hub.push import push_captioner
from .hub.saving import save_captioner
from .inference.captioning import CaptionResult, caption, iter_captions
from .inference.int8 import quantize_frozen_weights
from .inference.loading import load_captioner

AutoConfig.register(ITuningConfig.model_type, ITuningConfig, exist_ok=True)
AutoModel.register(ITuningConfig, ITuningForCaptioning, exist_ok=True)
AutoModelForImageTextToText.register(ITuningConfig, ITuningForCaptioning, exist_ok=True)
AutoProcessor.register(ITuningConfig, ITuningProcessor, exist_ok=True)

try:
    from . import tuner  # noqa: F401 (registers itself)
except ImportError as error:  # the captioner needs no PEFT
    warnings.warn(f"The PEFT method 'ituning' is not available: {error}", stacklevel=2)

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
    "quantize_frozen_weights",
    "save_captioner",
]
