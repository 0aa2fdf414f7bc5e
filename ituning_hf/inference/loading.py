"""Load a saved captioner and its processor."""

from __future__ import annotations

import os
from typing import Any

import torch

from ..captioner.modeling_ituning import ITuningForCaptioning
from ..captioner.processing_ituning import ITuningProcessor
from ..utils.devices import usable_device
from ..utils.errors import UserError
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
    """Load a saved captioner in evaluation mode, and its processor.

    Args:
        model_name_or_path: The captioner's folder or Hub id.
        device: By default CUDA if there is a GPU, then Apple's MPS, then the CPU.
        dtype: The precision of all weights, such as "bfloat16". By default each part keeps that of its file.
        quantization: "int8" quantises the frozen language model's weights, on a CPU; see
            [`quantize_frozen_weights`].
        revision: The captioner's revision on the Hub. Its configuration has the revisions of the backbones.
        vision_model: The folder or Hub id of the frozen vision encoder, if it has moved.
        text_model: The folder or Hub id of the frozen language model, if it has moved.

    Returns:
        The captioner and its processor.

    Raises:
        OSError: The captioner or a backbone cannot be found.
        UserError: There is no processor, or the device cannot be used, or not with int8.
        ValueError: It is not a captioner, a file is damaged, or a backbone is not the one it was trained on.
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
    """Load a saved captioner to a device, by default the best one; `options` are for `from_pretrained`."""
    target = usable_device(device)
    if quantization not in (None, "int8"):
        raise UserError(f"quantization is {quantization!r}, expected 'int8' or None.")
    if quantization is not None:
        require_cpu(target)
    read_config(name, options.get("revision"))  # its errors name what is there instead of a captioner
    model: Any = ITuningForCaptioning.from_pretrained(name, **options)
    if quantization is not None:
        quantize_frozen_weights(model)
    return model.to(target)


def load_processor(name: str | os.PathLike[str], revision: str | None = None) -> ITuningProcessor:
    """Load the processor that was saved with a captioner.

    Raises:
        UserError: There is none.
        OSError: The Hub cannot be reached, or refuses access.
    """
    if not os.fspath(name):
        raise UserError(
            "This captioner was never saved, so it has no processor on disk: pass one, "
            "caption(model, images, processor)."
        )
    try:
        return ITuningProcessor.from_pretrained(name, revision=revision or "main")
    except OSError as error:
        if (explanation := explain_hub_error(error)) is not None:
            raise OSError(f"The processor of {os.fspath(name)!r} cannot be loaded: {explanation}.") from error
        raise UserError(
            f"There is no processor in {os.fspath(name)!r}: save it with the captioner, "
            "ituning_hf.save_captioner(model, processor, folder)."
        ) from error


__all__ = ["load_captioner", "load_model", "load_processor"]
