"""Load a saved captioner and its processor."""

from __future__ import annotations

import os
from typing import Any

import torch

from ..captioner.configuration_ituning import CaptionerError
from ..captioner.modeling_ituning import ITuningForCaptioning
from ..captioner.processing_ituning import ITuningProcessor
from ..utils.devices import usable_device
from ..utils.hub import explain_hub_error
from .files import read_config
from .int8 import quantize_frozen_weights, require_cpu


def load_captioner(
    model_name_or_path: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    quantization: str | None = None,
    revision: str | None = None,
    vision_model: str | os.PathLike[str] | None = None,
    text_model: str | os.PathLike[str] | None = None,
) -> tuple[ITuningForCaptioning, ITuningProcessor]:
    """Load a saved captioner and its processor, ready to caption.

    Args:
        model_name_or_path: The captioner's folder or Hub id.
        device: Where it runs. By default CUDA if there is one, then Apple's MPS, then the CPU.
        dtype: Precision of everything, such as "bfloat16". By default each part keeps that of its file.
        quantization: "int8" holds the frozen language model's weights so, for a CPU; see
            [`quantize_frozen_weights`].
        revision: The captioner's revision on the Hub; the backbones have their own, recorded in it.
        vision_model: Where the frozen vision encoder has moved to.
        text_model: Where the frozen language model has moved to.

    Returns:
        The captioner, in evaluation mode, and its processor.

    Raises:
        OSError: if the captioner or a backbone is not there.
        ValueError: if what is there is no captioner or has no processor, a file is damaged, a backbone
            is another one than it was trained on, or the device cannot be used, or not with int8.
    """
    options: dict[str, Any] = {"dtype": dtype, "quantization": quantization, "revision": revision}
    if vision_model is not None:
        options["vision_model_name_or_path"] = os.fspath(vision_model)
    if text_model is not None:
        options["text_model_name_or_path"] = os.fspath(text_model)
    model = load_model(model_name_or_path, device, **options)
    return model, load_processor(model_name_or_path, revision)


def load_model(
    name: str | os.PathLike[str], device: Any = None, *, quantization: str | None = None, **options: Any
) -> ITuningForCaptioning:
    """Load a saved captioner to a device, None being the best there is; `options` as in `from_pretrained`."""
    target = usable_device(device)
    if quantization not in (None, "int8"):
        raise ValueError(f"quantization is {quantization!r}, expected 'int8' or None.")
    if quantization is not None:
        require_cpu(target)
    read_config(name, options.get("revision"))  # says clearly what is wrong with the place
    model: Any = ITuningForCaptioning.from_pretrained(name, **options)
    if quantization is not None:
        quantize_frozen_weights(model)
    return model.to(target)


def load_processor(name: str | os.PathLike[str], revision: str | None = None) -> ITuningProcessor:
    """Load the processor that was saved beside a captioner.

    Raises:
        ValueError: if there is none, not all of it, or not as it was saved.
        OSError: if the Hub does not give it.
    """
    try:
        processor = ITuningProcessor.from_pretrained(name, revision=revision or "main")
    except CaptionerError:
        raise
    # Of a damaged file Transformers and tokenizers raise whatever comes of it, a bare Exception at times.
    except Exception as error:
        if (explanation := explain_hub_error(error)) is not None:
            raise OSError(f"The processor of {os.fspath(name)!r} cannot be had: {explanation}.") from error
        place = f"in {os.fspath(name)!r}" if os.fspath(name) else "beside a captioner that was never saved"
        raise ValueError(
            f"There is no whole processor {place} (processor_config.json, tokenizer files): save it beside "
            "the captioner, processor.save_pretrained(folder), or give it, caption(model, images, processor)."
            f" What was found: {type(error).__name__}: {error}"
        ) from error
    return processor


__all__ = ["load_captioner", "load_model", "load_processor"]
