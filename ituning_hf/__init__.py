"""I-Tuning: image captioning with small trainable adapters between two frozen models.

Importing `ituning_hf` registers the model type "ituning" with the Auto classes of Transformers and the method
"ituning" with PEFT. It imports neither library: each class is registered as soon as the module with the
registry has been imported.
"""

import warnings
from typing import TYPE_CHECKING

from ._version import __version__ as __version__
from .utils.imports import ImportHook, lazy_names

if TYPE_CHECKING:
    from .captioner.configuration_ituning import ITuningConfig as ITuningConfig
    from .captioner.modeling_ituning import ITuningForCaptioning as ITuningForCaptioning
    from .captioner.processing_ituning import ITuningProcessor as ITuningProcessor
    from .hub.push import push_captioner as push_captioner
    from .hub.saving import save_captioner as save_captioner
    from .inference.caption_batch import CaptionBatch as CaptionBatch
    from .inference.captioning import CaptionResult as CaptionResult
    from .inference.captioning import caption as caption
    from .inference.captioning import iter_captions as iter_captions
    from .inference.explain import explain as explain
    from .inference.explanation import Explanation as Explanation
    from .inference.int8 import quantize_frozen_weights as quantize_frozen_weights
    from .inference.loading import load_captioner as load_captioner

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "_version": ["__version__"],
        "captioner.configuration_ituning": ["ITuningConfig"],
        "captioner.modeling_ituning": ["ITuningForCaptioning"],
        "captioner.processing_ituning": ["ITuningProcessor"],
        "hub.push": ["push_captioner"],
        "hub.saving": ["save_captioner"],
        "inference.caption_batch": ["CaptionBatch"],
        "inference.captioning": ["CaptionResult", "caption", "iter_captions"],
        "inference.explain": ["explain"],
        "inference.explanation": ["Explanation"],
        "inference.int8": ["quantize_frozen_weights"],
        "inference.loading": ["load_captioner"],
    },
)


def _register_config() -> None:
    from transformers import AutoConfig

    from .captioner.configuration_ituning import ITuningConfig

    AutoConfig.register(ITuningConfig.model_type, ITuningConfig, exist_ok=True)


def _register_model() -> None:
    from transformers import AutoModel, AutoModelForImageTextToText

    from .captioner.modeling_ituning import ITuningConfig, ITuningForCaptioning

    AutoModel.register(ITuningConfig, ITuningForCaptioning, exist_ok=True)
    AutoModelForImageTextToText.register(ITuningConfig, ITuningForCaptioning, exist_ok=True)


def _register_processor() -> None:
    from transformers import AutoProcessor

    from .captioner.configuration_ituning import ITuningConfig
    from .captioner.processing_ituning import ITuningProcessor

    AutoProcessor.register(ITuningConfig, ITuningProcessor, exist_ok=True)


def _register_tuner() -> None:
    try:
        from .tuner import model  # noqa: F401 (its import registers the method)
    except ImportError as error:  # the captioner does not require PEFT, and importing PEFT must not fail
        warnings.warn(f"The PEFT method 'ituning' is not available: {error}", stacklevel=2)


# One action per module: registering everything at once would make `import peft` circular.
ImportHook(
    {
        "transformers.models.auto.configuration_auto": _register_config,
        "transformers.models.auto.modeling_auto": _register_model,
        "transformers.models.auto.processing_auto": _register_processor,
        "peft": _register_tuner,
    },
    packages=["transformers", "peft", f"{__name__}.captioner", f"{__name__}.tuner"],
).install()
